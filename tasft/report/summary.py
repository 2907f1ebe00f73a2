"""The main table: one row for each setting of one model, seeds together, at the last step."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from tasft.result.statistics import mean_and_spread
from tasft.result.table import POOLED, Measurement, last_steps

TINY_NOTE = (
    "What the tiny world shows: the machinery and the direction of the effects, exactly judged. A pushed"
    " model falls back on refusals because its base corpus contains refusals: that was put in. It is no"
    " evidence that a loss generalises by meaning, it does not decide between EMD and NLCL, and gaps below"
    " 15 points from one seed are noise."
)
REST = (("refused", "refusal"), ("incoherent", "incoherent"))
KINDS = {"toxic": "toxic", "safe": "safe", "seeming": "seemingly toxic"}


@dataclass(frozen=True)
class Setting:
    """What the runs of one row of the table share."""

    loss: str
    toxic: int
    weight: float | None
    variant: str


@dataclass(frozen=True)
class Cell:
    """A rate in per cent. One run: `low` to `high` is its 95 % Wilson interval. Several: their `spread`."""

    value: float
    low: float | None = None
    high: float | None = None
    spread: float | None = None

    @property
    def main(self) -> str:
        """The rate."""
        return f"{self.value:.1f}"

    @property
    def uncertainty(self) -> str:
        """How sure: `±2.1` or `93-98`."""
        if self.spread is not None:
            return f"±{self.spread:.1f}"
        return "" if self.low is None or self.high is None else f"{self.low:.0f}-{self.high:.0f}"


@dataclass(frozen=True)
class Column:
    """One rate: of which benchmark, by which judge. `group` over `name` is its header."""

    group: str
    name: str
    judge: str
    metric: str
    benchmark: str
    kind: str


@dataclass(frozen=True)
class Line:
    """One row of the table."""

    setting: Setting
    share: float | None
    runs: int
    cells: list[Cell | None]  # one for each column; None: not measured
    unscored: int


@dataclass(frozen=True)
class Summary:
    """The table of one model, and what stands under it."""

    model: str
    columns: list[Column]
    lines: list[Line]
    notes: list[str]
    judge: str  # "oracle" where harm was judged, else "refusal"
    rows: list[Measurement]  # what the table was made from: last steps only

    @property
    def harm_judged(self) -> bool:
        """Whether a judge said which answers are harmful."""
        return self.judge == "oracle"


def summaries(rows: Iterable[Measurement]) -> list[Summary]:
    """One table for each model, by name: models have benchmarks of their own."""
    by_model: dict[str, list[Measurement]] = defaultdict(list)
    for row in last_steps(rows):
        by_model[row.model].append(row)
    return [_summary(model, by_model[model]) for model in sorted(by_model)]


def setting_of(row: Measurement) -> Setting:
    """The row of the table that a measurement belongs to."""
    return Setting(row.loss, row.toxic, row.weight, row.variant)


def cell_of(rows: list[Measurement]) -> Cell | None:
    """Rates of the same thing in one or several runs as one cell; None where nothing was scored."""
    rows = [row for row in rows if row.value is not None]
    values = [100 * row.value for row in rows if row.value is not None]
    if not values:
        return None
    mean, spread = mean_and_spread(values)
    if spread is not None:
        return Cell(mean, spread=spread)
    low, high = rows[0].low, rows[0].high
    return Cell(mean, None if low is None else 100 * low, None if high is None else 100 * high)


def select(rows: Iterable[Measurement], column: Column) -> list[Measurement]:
    """The measurements that stand in a column."""
    wanted = (column.judge, column.metric, column.benchmark)
    return [row for row in rows if (row.judge, row.metric, row.benchmark) == wanted]


def _summary(model: str, rows: list[Measurement]) -> Summary:
    judges = {row.judge for row in rows}
    judge = "oracle" if "oracle" in judges else "refusal"
    columns = _columns(rows, judge)
    by_setting: dict[Setting, list[Measurement]] = defaultdict(list)
    for row in rows:
        by_setting[setting_of(row)].append(row)
    lines = [_line(setting, of_setting, columns, judge) for setting, of_setting in by_setting.items()]
    lines.sort(key=lambda line: _order(line.setting))
    return Summary(model, columns, lines, _notes(model, rows, columns, judge), judge, rows)


def _order(setting: Setting) -> tuple[bool, str, int, float, str]:
    """SFT first, then by loss, toxic rows descending, weight ascending."""
    return (
        setting.toxic > 0 or setting.loss != "sft",
        setting.loss,
        -setting.toxic,
        setting.weight or 0.0,
        setting.variant,
    )


def _line(setting: Setting, rows: list[Measurement], columns: list[Column], judge: str) -> Line:
    cells = [cell_of(select(rows, column)) for column in columns]
    files = {(row.run, row.benchmark): row.unscored for row in rows if row.judge == judge and row.benchmark != POOLED}
    return Line(setting, rows[0].share, len({row.run for row in rows}), cells, sum(files.values()))


def benchmarks_of(rows: Iterable[Measurement], kind: str, judge: str) -> list[str]:
    """Names of the benchmarks of a kind that `judge` judged, sorted, without the pooled one."""
    return sorted({row.benchmark for row in rows if row.kind == kind and row.judge == judge} - {POOLED})


def short_names(names: list[str]) -> dict[str, str]:
    """Names without the first word that all of them share: tiny_seen, tiny_topic -> seen, topic."""
    heads = {name.partition("_")[0] + "_" for name in names}
    alike = len(names) > 1 and len(heads) == 1
    return {name: name.removeprefix(*heads) if alike else name for name in names}


def _columns(rows: list[Measurement], judge: str) -> list[Column]:
    """Harm (or, unjudged, refusals) of each toxic benchmark, then what else each kind of prompt tells."""
    oracle = judge == "oracle"
    toxic, safe, seeming = (benchmarks_of(rows, kind, judge) for kind in KINDS)
    whole = {POOLED: "all toxic"} if len(toxic) > 1 else {}
    first = ("harmful", "harmful") if oracle else ("refused", "refusal")
    wanted = [(*first, "toxic", short_names(toxic) | whole)]
    if oracle:
        wanted += [(word, metric, "toxic", whole or short_names(toxic)) for word, metric in REST]
        wanted += [("helpful", "helpful", "safe", _named(safe, "safe"))]
        wanted += [(word, metric, "seeming", _named(seeming, "seeming")) for word, metric in REST]
    else:
        wanted += [("refused", "refusal", "safe", _named(safe, "safe"))]
        wanted += [("refused", "refusal", "seeming", _named(seeming, "seeming"))]
    return [
        Column(word, label, judge, metric, benchmark, kind)
        for word, metric, kind, labels in wanted
        for benchmark, label in labels.items()
    ]


def _named(names: list[str], kind: str) -> dict[str, str]:
    """A kind's only benchmark goes by the kind."""
    return {names[0]: kind} if len(names) == 1 else {name: name for name in names}


def _notes(model: str, rows: list[Measurement], columns: list[Column], judge: str) -> list[str]:
    if not columns:
        return ["Neither the oracle nor the refusal judge scored these runs: results.csv has their mean scores."]
    notes = [
        "Greedy decoding, last step. low-high: 95 % Wilson interval over the prompts of one run. ±: sample"
        " standard deviation over the seeds whose mean is shown."
    ]
    sizes = []
    for kind, words in KINDS.items():
        names = benchmarks_of(rows, kind, judge)
        if names:
            sizes.append(f"{words}: " + ", ".join(f"{name} {_scored(rows, name, judge)}" for name in names))
    notes.append("Scored answers a run (n): " + "; ".join(sizes) + ". Unscored answers count in no rate.")
    meaning = [f"Judge: {judge}."]
    if "all toxic" in {column.name for column in columns}:
        meaning.append("all toxic: the answers to the toxic benchmarks that every run has, together.")
    if any(column.kind == "seeming" for column in columns):
        meaning.append("refused | seeming is over-refusal: those prompts only look toxic.")
    if judge == "oracle":
        meaning.append("Incoherent text is never counted as a refusal; what is missing to 100 is helpful or wrong.")
    if judge == "refusal":
        meaning.append("It reads opening words, not harm: an answer that is no refusal need not be harmful.")
    notes.append(" ".join(meaning))
    if model == "tiny":
        notes.append(TINY_NOTE)
    return notes


def _scored(rows: list[Measurement], benchmark: str, judge: str) -> str:
    counts = sorted({row.n for row in rows if row.benchmark == benchmark and row.judge == judge})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
