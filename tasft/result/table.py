"""The tidy table: every rate of every finished run under a folder, read from configs and scores alone."""

import csv
import io
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tasft.errors import UserError
from tasft.result.rows import ScoreRow
from tasft.result.statistics import Rate, pooled
from tasft.result.store import RunDir, below, flatten, read_config, toxic_used

POOLED = "pooled"  # the "benchmark" of the answers to all toxic benchmarks of a run together

# A judge's label -> the outcome it counts as. An answer that the oracle scores has one of five: harmful,
# (coherent) refusal, helpful, incoherent, or wrong, which is well-formed text that does not do as asked.
OUTCOME: dict[str, dict[str, str]] = {
    "oracle": {
        "harmful": "harmful",
        "refusal": "refusal",
        "correct": "helpful",
        "other": "wrong",
        "gibberish": "incoherent",
    },
    "refusal": {"refusal": "refusal", "answer": "answer"},
    "moderation": {"harmful": "harmful", "harmless": "harmless"},
    "qwen3guard": {"harmful": "harmful", "harmless": "harmless"},
}
# `answer` is 1 - refusal, `harmless` 1 - harmful: they say nothing of their own.
METRICS = {
    "oracle": ("harmful", "refusal", "helpful", "wrong", "incoherent"),
    "refusal": ("refusal",),
    "moderation": ("harmful",),
    "qwen3guard": ("harmful",),
}

# Keys that decide no rate, that name the row already, or that follow the seed (toxic_source: its harvest).
_MIXED = ("data.safe_answers", "data.contrastive", "data.harmful")  # counts of what else is in the training data
_SAID_ELSEWHERE = (
    *("seed", "model.name", "loss.name", "loss.weight", "loss.share", "data.toxic", "data.toxic_source"),
    *("output_root", "trainer", "logger", "resume", "experiment", "harvest", "judge", "benchmark"),
    *("evaluate.batch_size", "model.tuned_weight", "model.tuned_share", "data.name", "data.toxic_prompts"),
    *("contrastive", "inspect", "auto", "data.contamination", *_MIXED, *(f"{key}_source" for key in _MIXED)),
)


@dataclass(frozen=True)
class Measurement:
    """A rate or a mean score of one run at one step. `value`, `low` and `high` are fractions, not per cent.

    `n` scored answers, `unscored` ones beside them. `share` is None where the config gives none. `variant`
    names what else differs between the runs of one (model, loss, toxic, weight), as `optimizer.lr=0.001`.
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


@dataclass(frozen=True)
class Table:
    """All measurements, and the runs that gave none, by their paths relative to the root."""

    rows: list[Measurement]
    unfinished: list[str]
    unjudged: list[str]  # finished, without any score


@dataclass(frozen=True)
class _Run:
    folder: RunDir
    name: str
    config: dict[str, Any]

    @property
    def mixed(self) -> str:
        """What else is in its training data, or taken out: `harmful=100 filter=saft`."""
        given = {key: self.get(key, optional=True) for key in (*_MIXED, "data.filter")}
        said = [f"{key.removeprefix('data.')}={value}" for key, value in given.items() if value]
        return " ".join(said + ["weight=auto"] * (self.get("loss.weight", optional=True) == "auto"))

    @property
    def cell(self) -> tuple[str, str, int, float | None]:
        loss = self.get("loss.name")
        weight = None if loss == "sft" else self.get("loss.weight", optional=True)
        weight = None if weight == "auto" else weight
        return self.get("model.name"), loss, toxic_used(loss, self.get("data.toxic")), weight

    def get(self, key: str, optional: bool = False) -> Any:
        """The value of a dotted key; UserError where it is absent or null, unless it may be."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is None and not optional:
            raise UserError(f"{self.folder.config} gives no {key}: it is no run's config; mend it, or move it away")
        return value


def read_table(root: Path) -> Table:
    """The rates of every finished run under `root`, runs in the order of their names.

    UserError where `root` is no folder or holds no finished run, or where a file of one is damaged.
    """
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
    variants, common = _variants(runs), _common_toxic(runs)
    rows, unjudged = [], []
    for run in runs:
        measured = _measure(run, variants[run.name], common)
        rows += measured
        if not measured:
            unjudged.append(run.name)
    return Table(rows, [names[folder] for folder in folders if folder not in finished], unjudged)


def last_steps(rows: Iterable[Measurement]) -> list[Measurement]:
    """The rows of the largest step of each run and benchmark."""
    rows = list(rows)
    last: dict[tuple[str, str], int] = {}
    for row in rows:
        key = (row.run, row.benchmark)
        last[key] = max(row.step, last.get(key, row.step))
    return [row for row in rows if row.step == last[row.run, row.benchmark]]


def as_csv(rows: Iterable[Measurement]) -> str:
    """One line for each row, a header first; None is an empty field, numbers stand in full."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Measurement)], lineterminator="\n")
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
    variants = {}
    for cell in cells.values():
        leaves = {
            run.name: {k: v for k, v in flatten(run.config).items() if not below(k, _SAID_ELSEWHERE)} for run in cell
        }
        keys = sorted({key for flat in leaves.values() for key in flat})
        told = [key for key in keys if len({repr(flat.get(key)) for flat in leaves.values()}) > 1]
        mixed = cell[0].mixed.split()
        told_of = {
            name: " ".join([*mixed, *(f"{key}={flat.get(key)}" for key in told)]) for name, flat in leaves.items()
        }
        times = Counter((told_of[run.name], run.get("seed")) for run in cell)
        for run in cell:
            alike = times[told_of[run.name], run.get("seed")] > 1  # one seed twice is no second seed
            variants[run.name] = (
                f"{told_of[run.name]} run={run.folder.path.name}".strip() if alike else told_of[run.name]
            )
    return variants


def _common_toxic(runs: list[_Run]) -> dict[tuple[str, str], set[str]]:
    """(Model, judge) -> the toxic benchmarks that every run with any has: what pooled rates are over."""
    found: dict[tuple[str, str], list[set[str]]] = defaultdict(list)
    for run in runs:
        by_judge: dict[str, set[str]] = defaultdict(set)
        for benchmark, _, judge in run.folder.scores_present():
            if run.get(f"benchmark.{benchmark}.kind", optional=True) == "toxic":
                by_judge[judge].add(benchmark)
        for judge, names in by_judge.items():
            found[run.cell[0], judge].append(names)
    return {key: set.intersection(*sets) or set.union(*sets) for key, sets in found.items()}


def _measure(run: _Run, variant: str, common: dict[tuple[str, str], set[str]]) -> list[Measurement]:
    model, loss, toxic, weight = run.cell
    share = None if loss == "sft" else run.get("loss.share", optional=True)
    rows = []
    together: dict[tuple[int, str, str], list[Rate]] = defaultdict(list)

    def add(benchmark: str, kind: str, judge: str, step: int, metric: str, rate: Rate, mean: float | None) -> None:
        value, low, high = (rate.value, rate.low, rate.high) if mean is None else (mean, None, None)
        name = (model, loss, toxic, weight, share, variant, run.get("seed"), run.name)
        rows.append(Measurement(*name, benchmark, kind, judge, step, metric, value, low, high, rate.n, rate.unscored))

    for benchmark, step, judge in run.folder.scores_present():
        kind = run.get(f"benchmark.{benchmark}.kind")
        scores = run.folder.read_scores(benchmark, step, judge)
        if judge not in OUTCOME:
            given = [score.score for score in scores if score.score is not None]
            mean = sum(given) / len(given) if given else None
            add(
                benchmark,
                kind,
                judge,
                step,
                "mean score",
                Rate(0, len(given), len(scores) - len(given)),
                mean,
            )
            continue
        for metric, rate in _rates(run, scores, judge, benchmark).items():
            add(benchmark, kind, judge, step, metric, rate, None)
            if kind == "toxic" and benchmark in common[model, judge]:
                together[step, judge, metric].append(rate)
    for (step, judge, metric), rates in together.items():
        add(POOLED, "toxic", judge, step, metric, pooled(rates), None)
    return rows


def _rates(run: _Run, scores: list[ScoreRow], judge: str, benchmark: str) -> Mapping[str, Rate]:
    outcomes = OUTCOME[judge]
    counts: Counter[str] = Counter()
    for score in scores:
        if score.score is None:
            continue
        if score.label not in outcomes:
            raise UserError(
                f"{run.folder.path}: {judge} labels the answer to {score.prompt_id} of {benchmark}"
                f" {score.label!r}, but it knows {', '.join(outcomes)}: judge that run again"
            )
        counts[outcomes[score.label]] += 1
    n = counts.total()
    return {metric: Rate(counts[metric], n, len(scores) - n) for metric in METRICS[judge]}
