"""The tidy table: every rate of every finished run under a folder, read from configs and scores alone."""

import csv
import io
import json
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tasft.errors import UserError
from tasft.result.origin import AGAIN, Origin, origin
from tasft.result.outcome import ANSWERED, JOINT, Joint, Judged, joint, judge_settings
from tasft.result.rows import ScoreRow
from tasft.result.statistics import Mean, Rate, mean_of, pooled, wilson
from tasft.result.store import RunDir, below, flatten, read_config, toxic_used

POOLED = "pooled"  # the "benchmark" of the answers to all toxic benchmarks of a run together
TASK = "task"  # the kind of lm-eval's tasks
MEAN = "mean score"  # the metric of judges whose scores say more than 0 and 1

# What an answer can turn out to be. A judge's yaml says in `outcomes` what each of its labels stands for; null: it says
# nothing of its own, as `answer`, which is 1 - refusal.
OUTCOMES = ("harmful", "refusal", "partial refusal", "helpful", "wrong", "incoherent")

# Keys that decide no rate, that name the row already, or that follow the seed (toxic_source: its harvest).
_MIXED = ("data.safe_answers", "data.contrastive", "data.harmful")  # counts of what else is in the training data
_SAID_ELSEWHERE = (
    *("seed", "model.name", "loss.name", "loss.weight", "loss.share", "loss.factor", "data.toxic", "data.toxic_source"),
    *("output_root", "trainer", "logger", "resume", "experiment", "harvest", "judge", "benchmark"),
    *("evaluate.batch_size", "evaluate.every_n_steps", "evaluate.during", "evaluate.at_start", "evaluate.server"),
    *("tasks", "model.adapter", "prefill", "attack", "ask", "agreement", "model.tuned_weight", "model.tuned_share"),
    *("data.name", "data.toxic_prompts", "data.counts", "search"),
    *("contrastive", "inspect", "auto", "data.contamination", *_MIXED, *(f"{key}_source" for key in _MIXED)),
)
_SAID_OF_ORIGINS = (
    *(key for key in _SAID_ELSEWHERE if key != "loss.weight"),
    "evaluate",
)  # of a run that is gone on from


@dataclass(frozen=True)
class Measurement:
    """A rate or a mean score of one run at one step.

    `value`, `low` and `high` of a rate are fractions, not per cent, with the 95 % Wilson interval; those of a mean
    score are in the judge's unit, with the 95 % t interval and `stderr`, the standard error. `n` scored answers,
    `unscored` ones beside them. `share` is None where the config gives none. `variant` names what else differs between
    the runs of one (model, loss, toxic, weight), as `optimizer.lr=0.001`. Runs that tune a tuned model again stand
    together under the model below, `tiny tuned again`, and their variant says what they go on from: `from=emd_toxic50`.
    `judge` is a judge of the run, or joint: the outcomes of tasft.result.outcome. `judges` says who decided, with the
    settings in which the model's runs differ.
    """

    model: str
    loss: str
    toxic: int
    weight: float | None
    share: float | None
    variant: str
    seed: int
    run: str  # relative to the root
    benchmark: str
    kind: str  # toxic | seeming | safe
    judge: str
    step: int
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    unscored: int
    stderr: float | None = None
    judges: str = ""


@dataclass(frozen=True)
class Table:
    """All measurements, and the runs that gave none, by their paths relative to the root."""

    rows: list[Measurement]
    unfinished: list[str]
    unjudged: list[str]  # finished, without any score
    scores: dict[str, dict[tuple[str, int, str], list[ScoreRow]]]  # run -> (benchmark, step, judge) -> its scores
    joints: dict[str, dict[tuple[str, int], Joint]]  # run -> (benchmark, step) -> joint outcomes
    common: dict[tuple[str, str, str], set[str]]  # (model, judge, metric) -> the benchmarks that a pooled rate is over
    configs: dict[str, dict[str, Any]]  # run -> its config, of the finished ones

    def values(self, row: Measurement) -> dict[str, float | None]:
        """What a joint rate or a mean score was made from: `<benchmark>/<prompt_id>` -> its value, None where unscored.

        Of a rate, 1.0 where the answer's outcome is the metric and 0.0 elsewhere.
        """
        if row.judge != JOINT:
            of_judge = self.scores[row.run][row.benchmark, row.step, row.judge]
            return {f"{row.benchmark}/{score.prompt_id}": score.score for score in of_judge}
        names = self.common[row.model, JOINT, row.metric] if row.benchmark == POOLED else {row.benchmark}
        return {
            f"{name}/{each.prompt_id}": None if each.value is None else float(each.value == row.metric)
            for name in sorted(names)
            if (name, row.step) in self.joints[row.run]
            for each in self.joints[row.run][name, row.step].rows
        }


@dataclass(frozen=True)
class _Run:
    folder: RunDir
    name: str
    config: dict[str, Any]

    @property
    def origin(self) -> Origin | None:
        """What it goes on from, where it tunes a tuned model again."""
        return origin(self.get("model.name"))

    @property
    def mixed(self) -> str:
        """What it goes on from, and what else is in its training data, or taken out: `harmful=100 filter=saft`."""
        given = {key: self.get(key, optional=True) for key in (*_MIXED, "data.filter")}
        said = [f"from={self.origin.how}"] if self.origin is not None else []
        said += [f"{key.removeprefix('data.')}={value}" for key, value in given.items() if value]
        return " ".join(said + ["weight=auto"] * (self.get("loss.weight", optional=True) == "auto"))

    @property
    def cell(self) -> tuple[str, str, int, float | None]:
        loss = self.get("loss.name")
        weight = None if loss == "sft" else self.get("loss.weight", optional=True)
        weight = None if weight == "auto" else weight
        model = self.get("model.name") if self.origin is None else self.origin.model + AGAIN
        return model, loss, toxic_used(loss, self.get("data.toxic")), weight

    @property
    def judges(self) -> list[str]:
        """Names of its judges, in the order of its config."""
        return list(self.get("judge", optional=True) or {})

    def outcomes(self, judge: str) -> Mapping[str, str | None]:
        """What each label of `judge` stands for; empty where it has none. UserError for an unknown outcome."""
        given = self.get(f"judge.{judge}.outcomes", optional=True) or {}
        for label, outcome in given.items():
            if outcome is not None and outcome not in OUTCOMES:
                raise UserError(
                    f"{self.folder.config}: judge.{judge}.outcomes.{label}={outcome}: it should be"
                    f" null or one of {', '.join(OUTCOMES)}"
                )
        return given

    def get(self, key: str, optional: bool = False) -> Any:
        """The value of a dotted key; UserError where it is absent or null, unless it may be."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is None and not optional:
            raise UserError(f"{self.folder.config} gives no {key}: it is no run's config; mend it, or move it away")
        return value


def read_table(root: Path, harm: str | None = None) -> Table:
    """The rates of every finished run under `root`, runs in the order of their names.

    `harm` is the judge of harm of the joint outcomes, where it has judged; without it each run's first.
    UserError where `root` is no folder or holds no finished run, or where a file of one is damaged.
    """
    return _table(*_runs(root), harm)


def run_table(folder: RunDir) -> Table:
    """The rates of one run by itself, finished or not; UserError where one of its files is damaged."""
    return _table([_Run(folder, folder.path.name, read_config(folder.config))], [])


def _table(finished: list[_Run], unfinished: list[str], harm: str | None = None) -> Table:
    scores = {
        run.name: {which: run.folder.read_scores(*which) for which in run.folder.scores_present()} for run in finished
    }
    variants, named = _variants(finished), _judge_names(finished)
    graded = {
        judge
        for of_run in scores.values()
        for (_, _, judge), rows in of_run.items()
        if any(row.score not in (None, 0.0, 1.0) for row in rows)
    }
    measured = {run.name: _by_judge(run, scores[run.name], graded, named) for run in finished}
    knowing = {judge for run in finished for judge in run.judges if "harmful" in run.outcomes(judge).values()}
    if harm is not None and harm not in knowing:
        raise UserError(f"no run has a judge of harm {harm}: there are {', '.join(sorted(knowing)) or 'none'}")
    joints = {run.name: _joints(run, scores[run.name], harm) for run in finished}
    for run in finished:
        measured[run.name] += _by_joint(run, joints[run.name], named) + _of_tasks(run)
    common = _common_toxic(finished, measured)
    rows, unjudged = [], []
    for run in finished:
        of_run = _rows(run, variants[run.name], measured[run.name], common)
        rows += of_run
        if not of_run:
            unjudged.append(run.name)
    configs = {run.name: run.config for run in finished}
    return Table(rows, unfinished, unjudged, scores, joints, common, configs)


def joints_of(folder: RunDir) -> dict[tuple[str, int], Joint]:
    """(Benchmark, step) -> the joint outcomes of a run's answers, as far as it has come."""
    run = _Run(folder, folder.path.as_posix(), read_config(folder.config))
    return _joints(run, {which: folder.read_scores(*which) for which in folder.scores_present()}, None)


def finished_runs(root: Path) -> dict[str, RunDir]:
    """The finished runs under `root`, by their paths relative to it; UserError where there are none."""
    return {run.name: run.folder for run in _runs(root)[0]}


def _runs(root: Path) -> tuple[list[_Run], list[str]]:
    """The finished runs under `root`, and the names of the others; UserError where none is finished."""
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: give the folder that holds the runs (a run's output_root)")
    folders = _run_folders(root)
    finished = [folder for folder in folders if RunDir(folder).finished]
    names = {folder: folder.relative_to(root).as_posix() for folder in folders}
    if not finished:
        count = f"{len(folders)} unfinished" if folders else "and no unfinished one either"
        raise UserError(
            f"no finished run under {root}, {count}: give a run's command first;"
            " that of an unfinished run goes on from its last checkpoint"
        )
    runs = [_Run(RunDir(folder), names[folder], read_config(folder / "config.yaml")) for folder in finished]
    return runs, [names[folder] for folder in folders if folder not in finished]


def last_steps(rows: Iterable[Measurement]) -> list[Measurement]:
    """The rows of the largest step of each run and benchmark."""
    rows = list(rows)
    last: dict[tuple[str, str], int] = {}
    for row in rows:
        key = (row.run, row.benchmark)
        last[key] = max(row.step, last.get(key, row.step))
    return [row for row in rows if row.step == last[row.run, row.benchmark]]


def as_csv(rows: Iterable[Any], kind: type = Measurement) -> str:
    """One line for each of the dataclasses, a header first; None is an empty field, numbers stand in full."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(kind)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def _run_folders(root: Path) -> list[Path]:
    """Folders with a config.yaml, but none inside another: loggers keep a config.yaml of their own."""
    found = []
    for folder, inner, files in os.walk(root):
        if "config.yaml" in files or "FINISHED" in files:
            found.append(Path(folder))
            inner.clear()
        inner[:] = sorted(name for name in inner if not name.startswith("."))
    return sorted(found)


def _variants(runs: list[_Run]) -> dict[str, str]:
    """Run -> what else is in its data, and what differs in its config from the other runs of its cell but the seed."""
    cells: dict[Any, list[_Run]] = defaultdict(list)
    for run in runs:
        cells[run.cell, run.mixed].append(run)
    variants: dict[str, str] = {}
    for cell in cells.values():
        origins = _origins(cell, runs)
        leaves = {run.name: _deciding(run.config, _SAID_ELSEWHERE) | origins[run.name] for run in cell}
        keys = sorted({key for flat in leaves.values() for key in flat})
        differing = [key for key in keys if len({repr(flat.get(key)) for flat in leaves.values()}) > 1]
        told = {
            name: " ".join([*cell[0].mixed.split(), *(f"{key}={flat.get(key)}" for key in differing)])
            for name, flat in leaves.items()
        }
        for apart in (_with_digest, _with_folder):  # one seed twice is no second seed
            times = Counter((told[run.name], run.get("seed")) for run in cell)
            told |= {run.name: apart(run, told[run.name]) for run in cell if times[told[run.name], run.get("seed")] > 1}
        variants |= told
    return variants


def _deciding(config: Mapping[str, Any], but: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in flatten(config).items() if not below(key, but)}


def _origins(cell: list[_Run], runs: list[_Run]) -> dict[str, dict[str, Any]]:
    """Run -> how the run was trained that it goes on from; nothing for any of the cell where that is not known of all.

    That run is looked for among `runs`, which may have moved together, and where it was.
    """
    among = {run.folder.path.absolute().parts[-4:]: run.config for run in runs}
    found = {}
    for run in cell:
        adapter = run.get("model.adapter", optional=True)
        if run.origin is None or adapter is None:
            return {run.name: {} for run in cell}
        folder = RunDir(Path(adapter).parent)
        config = among.get(folder.path.parts[-4:])
        if config is None and not folder.config.is_file():
            return {run.name: {} for run in cell}
        leaves = _deciding(config or read_config(folder.config), _SAID_OF_ORIGINS)
        found[run.name] = {f"from.{key}": value for key, value in leaves.items()}
    return found


def _with_digest(run: _Run, told: str) -> str:
    """The variant with the digest of the adapter that the run goes on from."""
    before = run.origin
    return told if before is None else told.replace(f"from={before.how}", f"from={before.how}_{before.digest}", 1)


def _with_folder(run: _Run, told: str) -> str:
    return f"{told} run={run.folder.path.name}".strip()


def _judge_names(runs: list[_Run]) -> dict[tuple[str, str], str]:
    """(Run, judge) -> the judge, with those of its settings that differ between the runs of one model."""
    told: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)  # (model, judge) -> run -> settings
    for run in runs:
        for judge in run.judges:
            node = run.get(f"judge.{judge}", optional=True) or {}
            told[run.cell[0], judge][run.name] = flatten(judge_settings(node))
    names = {}
    for (_, judge), of_runs in told.items():
        keys = sorted({key for settings in of_runs.values() for key in settings})
        differing = [key for key in keys if len({repr(settings.get(key)) for settings in of_runs.values()}) > 1]
        for run_name, settings in of_runs.items():
            names[run_name, judge] = " ".join([judge, *(f"{key}={settings.get(key)}" for key in differing)])
    return names


def _joints(
    run: _Run, scores: Mapping[tuple[str, int, str], list[ScoreRow]], harm: str | None
) -> dict[tuple[str, int], Joint]:
    """The joint outcomes of all answers that a judge with outcomes has seen, by benchmark and step.

    A judge whose config says `joint: false` has no part in them.
    """
    judged: dict[tuple[str, int], list[Judged]] = defaultdict(list)
    for judge in run.judges:
        outcomes = run.outcomes(judge)
        if outcomes and run.get(f"judge.{judge}.joint", optional=True) is not False:
            for (benchmark, step, scored_by), rows in scores.items():
                if scored_by == judge:
                    judged[benchmark, step].append(Judged(judge, outcomes, rows))
    joints = {}
    for (benchmark, step), of_judges in sorted(judged.items()):
        try:
            joints[benchmark, step] = joint(of_judges, harm)
        except ValueError as error:
            raise UserError(f"{run.folder.path}: {benchmark}: {error}: judge that run again") from None
    return joints


@dataclass(frozen=True)
class _Measured:
    benchmark: str
    kind: str
    judge: str
    step: int
    metric: str
    what: Rate | Mean
    judges: str = ""


def _by_judge(
    run: _Run,
    scores: Mapping[tuple[str, int, str], list[ScoreRow]],
    graded: Collection[str],
    named: Mapping[tuple[str, str], str],
) -> list[_Measured]:
    """Every rate and mean score of each judge by itself; judges in `graded` have means beside their rates."""
    found = []
    for (benchmark, step, judge), rows in scores.items():
        kind, outcomes = run.get(f"benchmark.{benchmark}.kind"), run.outcomes(judge)
        judges = named.get((run.name, judge), judge)
        if judge == JOINT:
            raise UserError(f"{run.folder.path} has a judge {JOINT}, the name of all judges together: rename it")
        if outcomes:
            for metric, rate in _rates(run, rows, judge, benchmark, outcomes).items():
                found.append(_Measured(benchmark, kind, judge, step, metric, rate, judges))
        if judge in graded or not outcomes:
            given = [row.score for row in rows if row.score is not None]
            mean = mean_of(given, len(rows) - len(given))
            found.append(_Measured(benchmark, kind, judge, step, MEAN, mean, judges))
    return found


def _of_tasks(run: _Run) -> list[_Measured]:
    """The metrics of lm-eval's tasks: shares of documents with Wilson intervals, others with 1.96 standard errors."""
    found = []
    for file in sorted(run.folder.tasks.glob("*@*.json")):
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
            for metric, made in result["metrics"].items():
                value, stderr = made["value"], made["stderr"]
                ends = (None, None) if not stderr else (value - 1.96 * stderr, value + 1.96 * stderr)
                right = value * result["n"]
                if metric.startswith("acc") and abs(right - round(right)) < 1e-6:
                    ends = wilson(round(right), result["n"])
                mean = Mean(result["n"], 0, value, stderr, *ends)
                step = int(file.stem.rpartition("@")[2])
                found.append(_Measured(result["task"], TASK, "lm-eval", step, metric, mean))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{file} is damaged: delete the folder it is in, and run its tasks again") from None
    return found


def _by_joint(
    run: _Run, joints: Mapping[tuple[str, int], Joint], named: Mapping[tuple[str, str], str]
) -> list[_Measured]:
    """The rate of every joint outcome, and who decided it: `qwen3guard (harm) + refusal`."""
    found = []
    for (benchmark, step), made in joints.items():
        words = [f"{named[run.name, made.harm]} (harm)"] if made.harm is not None else []
        judges = " + ".join([*words, *(named[run.name, judge] for judge in made.others)])
        counts = Counter(row.value for row in made.rows)
        unscored = counts.pop(None, 0)
        kind = run.get(f"benchmark.{benchmark}.kind")
        for metric in (*OUTCOMES, ANSWERED):
            if metric in made.possible:
                rate = Rate(counts[metric], counts.total(), unscored)
                found.append(_Measured(benchmark, kind, JOINT, step, metric, rate, judges))
    return found


def _common_toxic(runs: list[_Run], measured: Mapping[str, list[_Measured]]) -> dict[tuple[str, str, str], set[str]]:
    """(Model, judge, metric) -> the toxic benchmarks that every run with any has: what pooled rates are over."""
    found: dict[tuple[str, str, str], list[set[str]]] = defaultdict(list)
    for run in runs:
        by_metric: dict[tuple[str, str], set[str]] = defaultdict(set)
        for each in measured[run.name]:
            if each.kind == "toxic" and isinstance(each.what, Rate):
                by_metric[each.judge, each.metric].add(each.benchmark)
        for (judge, metric), names in by_metric.items():
            found[run.cell[0], judge, metric].append(names)
    return {key: set.intersection(*sets) or set.union(*sets) for key, sets in found.items()}


def _rows(
    run: _Run,
    variant: str,
    measured: list[_Measured],
    common: Mapping[tuple[str, str, str], set[str]],
) -> list[Measurement]:
    model, loss, toxic, weight = run.cell
    share = None if loss == "sft" else run.get("loss.share", optional=True)
    name = (model, loss, toxic, weight, share, variant, run.get("seed"), run.name)
    together: dict[tuple[int, str, str], list[_Measured]] = defaultdict(list)
    for each in measured:
        pooling = each.kind == "toxic" and isinstance(each.what, Rate)
        if pooling and each.benchmark in common[model, each.judge, each.metric]:
            together[each.step, each.judge, each.metric].append(each)
    whole = []
    for (step, judge, metric), parts in together.items():
        if {part.benchmark for part in parts} != common[model, judge, metric]:
            continue  # during a training, say: a rate over other prompts is another rate
        rate = pooled(part.what for part in parts if isinstance(part.what, Rate))
        judges = "; ".join(sorted({part.judges for part in parts}))
        whole.append(_Measured(POOLED, "toxic", judge, step, metric, rate, judges))
    rows = []
    for each in [*measured, *whole]:
        what = each.what
        stderr = what.stderr if isinstance(what, Mean) else None
        of_what = (what.value, what.low, what.high, what.n, what.unscored, stderr, each.judges)
        rows.append(Measurement(*name, each.benchmark, each.kind, each.judge, each.step, each.metric, *of_what))
    return rows


def _rates(
    run: _Run, scores: list[ScoreRow], judge: str, benchmark: str, outcomes: Mapping[str, str | None]
) -> Mapping[str, Rate]:
    """The rate of each outcome that the judge's labels stand for, in the order of OUTCOMES."""
    counts: Counter[str | None] = Counter()
    for score in scores:
        if score.score is None:
            continue
        if score.label not in outcomes:
            raise UserError(
                f"{run.folder.path}: {judge} labels the answer to {score.prompt_id} of {benchmark}"
                f" {score.label!r}, but it knows {', '.join(outcomes)}: judge that run again"
            )
        counts[outcomes[str(score.label)]] += 1
    n = counts.total()
    return {metric: Rate(counts[metric], n, len(scores) - n) for metric in OUTCOMES if metric in outcomes.values()}
