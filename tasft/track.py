"""Mirrors a run's files to W&B, or to one of Lightning's loggers. The files come first.

W&B is sent what the files say and it does not have yet: so a run that was killed, that lost the network, that was
fine-tuned without a logger, or that is judged again later is whole there after the next command. wandb.json in the
run's folder says which W&B run is its own. Whatever goes wrong here is one warning, and the run goes on.
"""

import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from pydantic import TypeAdapter

from tasft.config import judges_of
from tasft.errors import UserError, first_line
from tasft.result.outcome import JOINT
from tasft.result.rows import read_objects, write_atomically
from tasft.result.series import curves, final
from tasft.result.store import RunDir, flatten, read_config, toxic_used
from tasft.result.table import Table, run_table
from tasft.schema import RunConfig, Wandb

log = logging.getLogger(__name__)

TRAINED = "train/step"  # the last step that W&B knows: where a resumed run goes on
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL")  # in the names of variables whose values are never sent
LONGEST_TAG = 64  # W&B's limit

Values = dict[str, Any]
Answers = tuple[list[str], list[list[Any]]]  # the table of answers: its columns and rows


class Sink(Protocol):
    """What is sent to. `start`: the first step whose training row it lacks; None: it takes what is new alone."""

    start: int | None
    sent: dict[int, Values]  # the rates that it has, by step

    def log(self, values: Values, step: int) -> None:
        """Send values of a step; steps come in any order."""

    def finish(self, final: Values, answers: Callable[[], Answers]) -> None:
        """Send what holds of the whole run, and wait until all has arrived."""

    def close(self, failed: bool) -> None:
        """Close it before the run has come to its end."""


def check(config: RunConfig) -> None:
    """UserError where W&B would need an account and has no key, or where a key would be sent."""
    if not config.logger:
        return
    texts = {key: str(value) for key, value in flatten(asdict(config)).items()}
    texts |= {f"{word.partition('=')[0]} on the command line": word for word in sys.argv[1:]}
    for variable, secret in os.environ.items():
        if SECRET.search(variable.upper()) and len(secret) >= 8 and not os.path.exists(secret):
            said = next((key for key, text in texts.items() if secret in text), None)
            if said is not None:
                raise UserError(f"{said} holds the value of ${variable}, which a logger would send: take it out")
    if not _is_wandb(config) or _mode(config) != "online":
        return
    import wandb  # slow to import

    try:
        known = wandb.login(prompt=False)
    except Exception as error:  # no network: the run can do without
        log.warning("W&B does not answer (%s): the run is made all the same", first_line(error))
        return
    if not known:
        raise UserError("logger=wandb needs an account: run wandb login first, or use logger=wandb_offline")


@contextmanager
def tracking(config: RunConfig, folder: RunDir, stage: str, lightning: Logger | None = None) -> "Iterator[Tracker]":
    """What mirrors the run in `folder`; `stage`: what is done with it, as W&B's job type of a run that it sees first.

    Closed at the end, or the next run of a grid would go on in it.
    """
    make: Callable[[], Sink] | None = None
    if lightning is not None:
        make = partial(_Lightning, lightning, folder)
    elif _is_wandb(config) and _mode(config) != "disabled":
        make = partial(_Wandb, config, folder, stage)
    tracker = Tracker(config, folder, make)
    try:
        yield tracker
    except BaseException:
        tracker.close(failed=True)
        raise
    tracker.close(failed=False)


class Tracker(Logger):
    """One run's mirror, opened when there is something to send, on the first rank alone. Its methods raise nothing."""

    def __init__(self, config: RunConfig, folder: RunDir, make: Callable[[], Sink] | None) -> None:
        super().__init__()
        self.config, self.folder = config, folder
        self._make = make  # None: there is nothing to open, or no more
        self._sink: Sink | None = None
        self._trained = 0  # the last step whose training row was sent
        later = make is not None and not _is_wandb(config) and folder.config.exists()
        self._before = self._rates() if later else {}  # which is nothing to one of Lightning's

    @property
    def name(self) -> str:
        """The run's folder."""
        return str(self.folder.path)

    @property
    def version(self) -> str:
        """The name of the run's folder."""
        return self.folder.path.name

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing: the config is sent when the mirror is opened."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send what a step measured, which stands in the run's files already."""
        with self._safely():
            sink = self._opened()
            if sink is not None and step is not None and step > self._trained:
                sink.log(dict(metrics) | {TRAINED: step}, step)
                self._trained = step

    @rank_zero_only
    def evaluated(self) -> None:
        """Send the rates in the run's files that have not been sent, of any step."""
        with self._safely():
            sink = self._opened()
            if sink is not None:
                self._send_rates(sink, self._rates())

    @rank_zero_only
    def finish(self) -> None:
        """Send what is missing of a run that has come to its end, and what holds of the whole; opened only for that."""
        with self._safely():
            if self._make is None:
                return
            table = run_table(self.folder)
            final, rates = _final(self.folder, table), self._rates(table)
            new = _pending(self.config, self.folder, final) if _is_wandb(self.config) else self._before != rates
            sink = self._opened() if self._sink is not None or new else None
            if sink is not None:
                self._send_rates(sink, rates)
                sink.finish(final, partial(self._answers, table))
        self._make = self._sink = None

    @rank_zero_only
    def close(self, failed: bool) -> None:
        """Close what is still open, before the run's end; the next that opens it goes on."""
        sink, self._make, self._sink = self._sink, None, None
        with self._safely():
            if sink is not None:
                sink.close(failed)

    def _opened(self) -> Sink | None:
        if self._sink is None and self._make is not None:
            self._sink = self._make()
            self._catch_up(self._sink)
        return self._sink

    def _catch_up(self, sink: Sink) -> None:
        """Send what was measured before the sink was opened, in the order of the steps."""
        if sink.start is None:
            sink.sent = self._before
            return
        rows, rates = training_rows(self.folder), self._rates()
        for step in sorted(rows.keys() | rates.keys()):
            values = rows.get(step, {}) if step >= sink.start else {}
            values = values | self._unsent(sink, step, rates.get(step, {}))
            if values:
                sink.log(values, step)
        self._trained = max([sink.start - 1, *rows])

    def _send_rates(self, sink: Sink, rates: dict[int, Values]) -> None:
        for step, of_step in sorted(rates.items()):
            unsent = self._unsent(sink, step, of_step)
            if unsent:
                sink.log(unsent, step)

    def _unsent(self, sink: Sink, step: int, rates: Values) -> Values:
        """Those of a step's rates that the sink lacks; it is about to have them."""
        known = sink.sent.get(step, {})
        sink.sent[step] = known | rates
        return {key: value for key, value in rates.items() if known.get(key) != value}

    def _rates(self, table: Table | None = None) -> dict[int, Values]:
        """The rates in the run's files by step; joint ones only where no judge is to come who could change them."""
        table = table or run_table(self.folder)
        return curves(
            row
            for row in table.rows
            if row.judge != JOINT or all(self._judged(name, row.step) for name in table.benchmarks(row))
        )

    def _judged(self, benchmark: str, step: int) -> bool:
        judges = judges_of(self.config, benchmark) if benchmark in self.config.benchmark else []
        return all(self.folder.has_scores(benchmark, step, judge) for judge in judges)

    def _answers(self, table: Table) -> Answers:
        settings = _settings(self.config)
        return answers(self.folder, table, settings.sample, settings.responses)

    @contextmanager
    def _safely(self) -> Iterator[None]:
        """The mirror must never cost the run: what it raises is said once, and it sends no more."""
        try:
            yield
        except Exception as error:
            sink, self._make, self._sink = self._sink, None, None
            _say(error)
            if sink is not None:
                with suppress(Exception):
                    sink.close(failed=True)  # W&B's client would take it to be still at work


def lacking(config: RunConfig, folder: RunDir) -> bool:
    """Whether a logger is asked for that lacks something of the finished run in `folder`."""
    if not _is_wandb(config) or _mode(config) == "disabled":
        return False
    return _pending(config, folder, _final(folder, run_table(folder)))


def track_stage(
    config: RunConfig,
    folder: RunDir,
    stage: str,
    final: Values,
    rows: Sequence[tuple[int, Values]] = (),
    over: str = "step",
) -> None:
    """A W&B run of its own for what else was done with a run: `harvest`, `attack`, `prefill <source>`.

    It stands in the run's group, under the run's config; `rows` are logged over `over`. Nothing without W&B, or where
    all of it was sent before; what goes wrong is a warning.
    """
    if not _is_wandb(config) or _mode(config) == "disabled":
        return
    try:
        if _pending(config, folder, final, stage):
            sink = _Wandb(config, folder, stage, alone=True, over=over)
            for at, values in rows:
                sink.log(values, at)
            sink.finish(final)
    except Exception as error:
        _say(error)


def training_rows(folder: RunDir) -> dict[int, Values]:
    """What stands in metrics.jsonl and speed.jsonl of each step, as `train/<key>`."""
    rows: dict[int, Values] = {}
    for file in (folder.metrics, folder.speed):
        for _, row in read_objects(file) if file.exists() else []:
            rows.setdefault(row["step"], {}).update({f"train/{key}": value for key, value in row.items()})
    return rows


def answers(folder: RunDir, table: Table, sample: int, texts: bool) -> Answers:
    """A table of the last answers to each benchmark: outcome and each judge's verdict; with `texts` what was said, too.

    At most `sample` of each benchmark, spread evenly over its prompts.
    """
    last = {benchmark: step for benchmark, step in folder.responses_present()}  # sorted
    judges = sorted({judge for _, _, judge in folder.scores_present()})
    (scores,), (joints,) = table.scores.values(), table.joints.values()
    rows: list[list[Any]] = []
    for benchmark, step in last.items():
        responses, joint = folder.read_responses(benchmark, step), joints.get((benchmark, step))
        of_judges = [scores.get((benchmark, step, judge)) for judge in judges]
        for i in spread(len(responses), sample):
            said = [responses[i].prompt, responses[i].response] if texts else []
            outcome = joint.rows[i].value if joint is not None else None
            verdicts = [(each[i].label, each[i].score) if each else (None, None) for each in of_judges]
            rows.append([benchmark, step, responses[i].prompt_id, *said, outcome, *chain.from_iterable(verdicts)])
    columns = ["benchmark", "step", "prompt_id", *(["prompt", "response"] if texts else []), "outcome"]
    return columns + [f"{judge} {part}" for judge in judges for part in ("label", "score")], rows


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the indices below `count`, evenly spread, the first among them."""
    return list(range(count)) if count <= most else [i * count // most for i in range(most)]


class _Lightning:
    """One of Lightning's loggers, which gets what is measured from now on."""

    def __init__(self, logger: Logger, folder: RunDir) -> None:
        self.logger = logger
        self.start: int | None = None
        self.sent: dict[int, Values] = {}
        logger.log_hyperparams(read_config(folder.config))

    def log(self, values: Values, step: int) -> None:
        self.logger.log_metrics({key: value for key, value in values.items() if key != TRAINED}, step=step)

    def finish(self, final: Values, answers: Callable[[], Answers]) -> None:
        self.close(failed=False)

    def close(self, failed: bool) -> None:
        self.logger.save()
        self.logger.finalize("failed" if failed else "success")
        finish = getattr(getattr(self.logger, "experiment", None), "finish", None)  # W&B's
        if finish is not None:
            finish()


class _Wandb:
    """The W&B run of a run, which every session goes on in, or one of a stage `alone`.

    Offline there is no server to ask what it has, and of a killed process nothing may have been written: so the folder
    of each session holds the whole run, and what is uploaded replaces what was uploaded before.
    """

    def __init__(self, config: RunConfig, folder: RunDir, stage: str, alone: bool = False, over: str = "step") -> None:
        import wandb

        self.config, self.folder, self.settings, self.over = config, folder, _settings(config), over
        self.place = stage if alone else "run"  # in wandb.json
        self.online = _mode(config) == "online"
        known = _kept(folder, self.place, self.settings)
        self.kept = known or {
            "id": f"{folder.path.name}-{uuid4().hex[:6]}",
            "job_type": stage.split()[0],
            "sent": {},
            "url": None,
        }
        described = _described(config, folder)
        self.run = wandb.init(
            project=self.settings.project,
            entity=self.settings.entity,
            id=self.kept["id"],
            name=os.path.relpath(folder.path, config.output_root) + (f" {stage}" if alone else ""),
            group=config.experiment or str(config.model.name),
            job_type=self.kept["job_type"],
            tags=list(dict.fromkeys([*tags(described["cell"]), *self.settings.tags])),
            notes=self.settings.notes,
            config=described,
            dir=folder.path,
            mode="online" if self.online else "offline",
            resume="allow" if self.online else None,
            reinit="create_new",
            settings=wandb.Settings(
                console="off",  # what is printed may be answers
                disable_git=True,  # it would send a patch of the checkout; environment.json has the commit
                disable_code=True,
                silent=True,
                init_timeout=self.settings.timeout,
                finish_timeout=self.settings.timeout,
                finish_timeout_raises=True,
            ),
        )
        for hidden in (over, TRAINED):
            self.run.define_metric(hidden, hidden=True)
        for curve in [f"{stage.split()[0]}/*"] if alone else ["train/*", "eval/*"]:
            self.run.define_metric(curve, step_metric=over)
        there = dict(self.run.summary) if self.run.resumed else {}
        self._closed = False
        self.start: int | None = int(there.get(TRAINED, -1)) + 1
        self.sent: dict[int, Values] = {}
        if self.run.resumed:
            self.sent = {int(step): rates for step, rates in self.kept["sent"].items()}
            if self.kept["open"]:  # it was killed: what was measured on the way has arrived as far as its steps have
                rates = curves(run_table(folder).rows)
                self.sent |= {step: of_step for step, of_step in rates.items() if step < (self.start or 0)}
        self._at, self._step = self.run.starting_step - 1, -1  # W&B's own counter, which only goes up; the last step
        self._keep(project=self.settings.project, entity=self.run.entity or self.kept.get("entity"))
        if self.online:
            self._keep(open=True, url=self.run.url)
            log.info("W&B: %s", self.run.url)

    def log(self, values: Values, step: int) -> None:
        """Send values of a step; those of one step that follow each other become one row."""
        if step != self._step:
            self._at, self._step = max(step, self._at + 1), step
        self.run.log({**values, self.over: step}, step=self._at)

    def finish(self, final: Values, answers: Callable[[], Answers] | None = None) -> None:
        """Send the final rates and the table of answers; TimeoutError where they do not arrive."""
        import wandb

        self.run.summary.update(final)
        columns, rows = answers() if answers is not None else ([], [])
        if rows:
            self.run.log({"answers": wandb.Table(columns=columns, data=rows)}, step=self._at + 1)
        self.close(failed=False)
        self._keep(digest=_digest(self.config, final))

    def close(self, failed: bool) -> None:
        """Wait until all has arrived; TimeoutError where it does not."""
        again, self._closed = self._closed, True
        self.run.finish(exit_code=int(failed))
        if self.online and not again:
            self._keep(open=False, sent=self.sent)

    def _keep(self, **changes: Any) -> None:
        """Write down in wandb.json which W&B run this is, and what it has."""
        self.kept |= changes
        file = _file(self.folder)
        everything = json.loads(file.read_text()) if file.exists() else {}
        write_atomically(file, json.dumps(everything | {self.place: self.kept}, indent=1) + "\n")


def tags(cell: Mapping[str, Any]) -> list[str]:
    """`llama7b`, `emd`, `toxic=300`, `weight=4`, `share=0.17`, `seed=0`, and what else is in the training data."""
    said = [str(cell["model"]), str(cell["loss"])]
    for key in ("toxic", "weight", "share", "seed"):
        if cell[key] is not None:
            said.append(f"{key}={cell[key]:.4g}" if isinstance(cell[key], float) else f"{key}={cell[key]}")
    return [each[:LONGEST_TAG] for each in [*said, *str(cell["mixed"] or "").split()]]


def _described(config: RunConfig, folder: RunDir) -> dict[str, Any]:
    """The run's config, its environment, and as `cell` what a grid goes over, as the report counts it."""
    described, loss, data = read_config(folder.config), config.loss, config.data
    parts = ("safe_answers", "contrastive", "harmful", "filter")
    cell = {
        "model": config.model.name,
        "loss": loss.name,
        "toxic": toxic_used(loss.name, data.toxic),
        "weight": loss.weight,  # None under plain SFT
        "share": described["loss"]["share"],
        "seed": config.seed,
        "mixed": " ".join(f"{part}={getattr(data, part)}" for part in parts if getattr(data, part)) or None,
    }
    return described | {"cell": cell, "environment": json.loads(folder.environment.read_text())}


def _settings(config: RunConfig) -> Wandb:
    return TypeAdapter(Wandb).validate_python(config.logger)


def _is_wandb(config: RunConfig) -> bool:
    return bool(config.logger) and "_target_" not in config.logger


def _mode(config: RunConfig) -> str:
    """online, offline or disabled: what the config says, but that WANDB_MODE can take W&B offline, as clusters do."""
    given = {"dryrun": "offline"}.get(os.environ.get("WANDB_MODE", ""), os.environ.get("WANDB_MODE", ""))
    return given if given in ("offline", "disabled") else _settings(config).mode


def _file(folder: RunDir) -> Path:
    return folder.path / "wandb.json"


def _kept(folder: RunDir, place: str, settings: Wandb) -> dict[str, Any] | None:
    """What wandb.json says of the run, or of a stage; None where it says nothing, or is of another project."""
    file = _file(folder)
    kept: dict[str, Any] | None = json.loads(file.read_text()).get(place) if file.exists() else None
    if kept is None or kept["project"] != settings.project:
        return None
    return None if settings.entity and kept["entity"] and settings.entity != kept["entity"] else {"open": False} | kept


def _final(folder: RunDir, table: Table) -> Values:
    """The final rates, and what the run has cost where that is known."""
    return final(table.rows) | {f"cost/{key}": value for key, value in folder.read_cost().items()}


def _pending(config: RunConfig, folder: RunDir, final: Values, place: str = "run") -> bool:
    """Whether there is something that W&B has not been told."""
    kept = _kept(folder, place, _settings(config))
    return kept is None or bool(kept["open"]) or kept.get("digest") != _digest(config, final)


def _digest(config: RunConfig, final: Values) -> str:
    settings = _settings(config)
    shown = [final, settings.responses, settings.sample, _mode(config)]
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()[:16]


def _say(error: Exception) -> None:
    log.warning(
        "the logger gave up (%s): the run goes on, its files have everything, and the same command sends later what is"
        " missing", first_line(error),
    )  # fmt: skip
