"""The paper's tables in the paper's own form: what was measured, and beside it what the paper has.

There once a run's config says `experiment: table2` or the like. Which runs stand in a table does not hang on whose
experiment made them: those of EMD stand in Tables 2 and 3 alike.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from tasft.paper import NOT_AVAILABLE, published
from tasft.report.summary import MISSING
from tasft.report.text import as_markdown
from tasft.result.outcome import JOINT
from tasft.result.statistics import estimate
from tasft.result.table import ATTACK, JAILBROKEN, MEAN, PAIR, POOLED, TASK, Measurement, Table, last_steps

NAMES = {
    "llama7b": "Llama 7b", "llama13b": "Llama 13b", "mistral7b": "Mistral 7b", "llama3_8b": "Llama3.1 8b",
    "i_malicious": "I-Malicious", "i_cona": "I-CoNa", "i_controversial": "I-Controversial", "harmfulq": "HarmfulQ",
    "boolq": "BoolQ", "piqa": "PIQA", "openbookqa": "OpenBookQA", "alpaca_eval": "AlpacaEval",
    "sft": "SFT", "kto": "KTO", "nlcl": "NLCL", "emd": "EMD", "stl": "STL",
    "model": "model", "method": "method", "count": "toxic rows",
}  # fmt: skip
HARMFUL, ASR, RATING, WEIGHT = "harmful", "attack success rate %", "mean judge score", "λ"
ANY_MODEL = "not said"  # of Table 8
PAPERS = {"llama7b", "llama13b", "mistral7b", "llama3_8b"}


@dataclass(frozen=True)
class Form:
    """How a table of the paper looks, and what tells that it is there."""

    title: str
    rows: tuple[str, ...]  # fields of a Beside
    columns: tuple[str, ...]
    methods: tuple[str, ...]
    telling: tuple[str, ...]  # methods of which one is measured, where no run is of the very experiment
    note: str
    experiment: str = ""  # where it is not called like the table


BY_COUNT = (("model", "count"), ("benchmark", "method"))
QUALITY = (("model",), ("benchmark", "method"), ("sft", "kto", "nlcl", "emd"), ("sft", "kto", "nlcl", "emd"))
COUNTED = (
    "Numbers of harmful answers, by the judge named, whatever the others say. [low-high]: 95 % interval of the rate,"
    " times the scored answers of a run. The paper does not say which of its judges it has counted by."
)
STL = " STL: plain SFT with as many safe answers to toxic prompts."
PER_CENT = "Per cent. [low-high]: 95 % interval."
FORMS = {
    "table1": Form("Table 1: quality of the answers", *QUALITY, PER_CENT),
    "table2": Form("Table 2: harmful answers, NLCL and EMD", *BY_COUNT, ("nlcl", "emd"), ("nlcl",), COUNTED),
    "table3": Form("Table 3: harmful answers, STL and EMD", *BY_COUNT, ("stl", "emd"), ("stl",), COUNTED + STL),
    "table4": Form(
        "Table 4: the best λ", ("method", "count"), ("model",), ("emd", "nlcl"), ("emd", "nlcl"),
        "Of the λ tried, that with the highest mean rate of right answers over the kinds of prompts there are (toxic:"
        " neither harmful nor incoherent; others: no refusal, and neither wrong, harmful nor incoherent), the smallest"
        " of several. [low-high]: the λ tried beside it. The paper does not say what it has chosen by.",
        "lambda_grid",
    ),
    "table5": Form("Table 5: multiple-choice questions", *QUALITY, PER_CENT),
    "table6": Form("Table 6: harmful answers, NLCL and EMD", *BY_COUNT, ("nlcl", "emd"), ("nlcl",), COUNTED),
    "table7": Form("Table 7: harmful answers, STL and EMD", *BY_COUNT, ("stl", "emd"), ("stl",), COUNTED + STL),
    "table8": Form(
        "Table 8: PAIR", ("model", "method", "count"), ("metric",), ("emd", "stl"), ("emd", "stl"),
        "[low-high]: 95 % interval. Mean judge score: of the best rating of each goal. The paper"
        " says neither of which model its numbers are, nor how many goals and streams it had." + STL,
    ),
}  # fmt: skip
FURTHER = {"table5": "table1", "table6": "table2", "table7": "table3"}  # only for what the paper has there


@dataclass(frozen=True)
class Beside:
    """One cell: what was measured, and what the paper has.

    `measured` is in the metric's unit, with its 95 % interval; of several runs (seeds) it is the mean, and `spread`
    their sample standard deviation. None: not measured. `paper` is a number, `not available` where
    our copy of the paper does not show it, or "" where the paper has no such cell.
    """

    table: str
    model: str
    method: str
    count: int
    differs: str  # what the runs differ in from others of their cell
    benchmark: str
    metric: str
    measured: float | None = None
    low: float | None = None
    high: float | None = None
    spread: float | None = None
    runs: int = 0
    n: int = 0  # scored answers of a run, the fewest
    unscored: int = 0  # of all runs
    judge: str = ""
    paper: float | str = ""
    difference: float | None = None  # measured - paper


@dataclass(frozen=True)
class Sheet:
    """A table of the paper, for models with the same benchmarks."""

    name: str
    cells: list[Beside]

    @property
    def form(self) -> Form:
        """How it looks."""
        return FORMS[self.name]


Key = tuple[str, str, int, str]  # model, method, count, what differs


def sheets(table: Table) -> list[Sheet]:
    """The paper's tables of which there is anything; none where no run is of one of the paper's experiments."""
    named = {config.get("experiment") for config in table.configs.values()}
    if not named & {form.experiment or name for name, form in FORMS.items()}:
        return []
    rows = last_steps(table.rows)
    counts, qualities = _counts(table, rows), _qualities(rows)
    found = {"table4": _weights(rows) if "lambda_grid" in named else [], "table8": _attacks(rows)}
    found |= dict.fromkeys(("table1", "table5"), qualities) | dict.fromkeys(
        ("table2", "table3", "table6", "table7"), counts
    )
    return [sheet for name in FORMS for sheet in _sheets(name, found[name], named)]


def restricted(table: Table, of_name: Sequence[Sheet]) -> Table:
    """The measurements that a table of the paper is made of."""
    cells = [cell for sheet in of_name for cell in sheet.cells if cell.measured is not None]
    kept = {(cell.model, cell.method, cell.count) for cell in cells}
    benchmarks = {cell.benchmark for cell in cells} | (
        {POOLED} if HARMFUL in {cell.metric for cell in cells} else set()
    )
    rows = [
        row
        for row in table.rows
        if (row.model, *method_of(row)[:2]) in kept and (row.benchmark in benchmarks or benchmarks == {""})
    ]
    return replace(table, rows=rows)


def method_of(row: Measurement) -> tuple[str, int, str]:
    """Method, its toxic rows (STL: safe answers), and what else the run's variant says."""
    words = row.variant.split()
    answers = [word.partition("=")[2] for word in words if word.startswith("safe_answers=")]
    if row.loss != "sft" or not answers:
        return row.loss, row.toxic, row.variant
    return "stl", int(answers[0]), " ".join(word for word in words if not word.startswith("safe_answers="))


def _keys(rows: Iterable[Measurement], at_one_weight: bool = True) -> dict[str, Key]:
    """Run -> its cell; `at_one_weight`: where a cell has runs at several λ, that is among what differs."""
    keys: dict[str, Key] = {row.run: (row.model, *method_of(row)) for row in rows}
    weights = {row.run: row.weight for row in rows}
    several: dict[Key, set[float | None]] = defaultdict(set)
    for run, key in keys.items():
        several[key].add(weights[run])
    if not at_one_weight:
        return keys
    return {
        run: (*key[:3], f"{key[3]} λ={weights[run]:.3g}".strip()) if len(several[key]) > 1 and weights[run] else key
        for run, key in keys.items()
    }


def _counts(table: Table, rows: Sequence[Measurement]) -> list[Beside]:
    """How many answers to each toxic benchmark the judge of harm calls harmful."""
    keys, found = _keys(rows), defaultdict(list)
    for row in rows:
        made = table.joints.get(row.run, {}).get((row.benchmark, row.step))
        if made is not None and (row.kind, row.metric, row.judge) == ("toxic", HARMFUL, made.harm):
            found[keys[row.run], row.benchmark].append(row)
    return [_cell(key, name, HARMFUL, of_cell, [row.n for row in of_cell]) for (key, name), of_cell in found.items()]


def _qualities(rows: Sequence[Measurement]) -> list[Beside]:
    """Per cent: accuracy in lm-eval's tasks, AlpacaEval's preference, and without it helpful answers to safe prompts.

    With the most toxic rows that the model was trained with.
    """
    preferred = {(row.run, row.benchmark) for row in rows if (row.judge, row.metric) == ("alpaca_eval", MEAN)}
    keys, found = _keys(rows), defaultdict(list)
    for row in rows:
        metric = ""
        if (row.kind, row.metric) == (TASK, "acc"):
            metric = "accuracy %"
        elif (row.judge, row.metric) == ("alpaca_eval", MEAN):
            metric = "preference %"
        elif (row.kind, row.judge, row.metric) == ("safe", JOINT, "helpful"):
            metric = "" if (row.run, row.benchmark) in preferred else "helpful %"
        method, count, _ = method_of(row)
        most = max(other.toxic for other in rows if other.model == row.model)
        if metric and count == (0 if method == "sft" else most):
            found[keys[row.run], row.benchmark, metric].append(row)
    return [_cell(*key, of_cell, [100] * len(of_cell)) for key, of_cell in found.items()]


def _cell(key: Key, benchmark: str, metric: str, rows: Sequence[Measurement], units: Sequence[float]) -> Beside:
    """The fractions or scores of one run or of several, times the mean of `units`."""
    judges = "; ".join(sorted({row.judges if row.judge == JOINT else row.judge for row in rows}))
    unscored, made = sum(row.unscored for row in rows), estimate(rows)
    cell = Beside("", *key, benchmark, metric, unscored=unscored, judge=judges)
    if made is None:
        return cell

    def scaled(value: float | None) -> float | None:
        return None if value is None else fmean(units) * value

    low, high, spread = scaled(made.low), scaled(made.high), scaled(made.spread)
    measured = fmean(unit * row.value for unit, row in zip(units, rows, strict=True) if row.value is not None)
    return replace(cell, measured=measured, low=low, high=high, spread=spread, runs=made.runs, n=made.n)


def _attacks(rows: Sequence[Measurement]) -> list[Beside]:
    """PAIR's success rate and mean best rating."""
    keys, found = _keys(rows), defaultdict(list)
    for row in rows:
        if row.kind == ATTACK:
            found[keys[row.run], row.judge, row.benchmark, row.metric].append(row)
    several = len({benchmark for _, _, benchmark, _ in found}) > 1
    cells = []
    for ((model, method, count, differs), judge, benchmark, metric), of_cell in found.items():
        words = [differs, judge.removeprefix(PAIR).strip(), f"goals={benchmark}" if several else ""]
        key = (model, method, count, " ".join(word for word in words if word))
        name, unit = (ASR, 100) if metric == JAILBROKEN else (RATING, 1)
        cell = _cell(key, "", name, of_cell, [unit] * len(of_cell))
        cells.append(replace(cell, judge=f"{of_cell[0].judges} on {benchmark}"))
    return cells


def _weights(rows: Sequence[Measurement]) -> list[Beside]:
    """The λ with the most right answers for each model, loss and count, between those that were tried beside it."""
    keys = _keys(rows, at_one_weight=False)
    right: dict[Key, dict[float, dict[tuple[str, str, int], float]]] = defaultdict(lambda: defaultdict(dict))
    wrong = {"toxic": {"harmful", "incoherent"}}  # elsewhere all but helpful and coherent answers
    elsewhere = {"harmful", "incoherent", "refusal", "partial refusal", "wrong"}
    for row in rows:
        if row.judge == JOINT and row.benchmark != POOLED and row.weight and row.value is not None:
            of_run = right[keys[row.run]][row.weight]
            where = (row.kind, row.benchmark, row.seed)
            of_run[where] = of_run.get(where, 1.0) - row.value * (row.metric in wrong.get(row.kind, elsewhere))
    return [_best(key, by_weight) for key, by_weight in right.items()]


def _best(key: Key, by_weight: dict[float, dict[tuple[str, str, int], float]]) -> Beside:
    def score(weight: float) -> float:
        """Mean over the kinds of prompts of the mean over their benchmarks and seeds."""
        by_kind: dict[str, list[float]] = defaultdict(list)
        for (kind, _, _), rate in by_weight[weight].items():
            by_kind[kind].append(rate)
        return fmean(fmean(rates) for rates in by_kind.values())

    tried = sorted(by_weight)
    at = max(range(len(tried)), key=lambda i: (score(tried[i]), -i))
    low, high = tried[at - 1] if at else None, tried[at + 1] if at + 1 < len(tried) else None
    seeds = {seed for _, _, seed in by_weight[tried[at]]}
    model, method, count, differs = key
    return Beside("", model, method, count, differs, "", WEIGHT, tried[at], low, high, runs=len(seeds))


def _sheets(name: str, found: Sequence[Beside], named: set[str | None]) -> list[Sheet]:
    """A table of the paper, once for all models with the same benchmarks."""
    form, cells = FORMS[name], published(name)
    in_table, known = {cell.model for cell in cells}, {cell.benchmark for cell in cells}
    elsewhere = {cell.benchmark for other in FORMS for cell in published(other)} - known
    mine = [
        cell
        for cell in found
        if cell.method in form.methods
        and (cell.model in in_table or (name not in FURTHER and (cell.model not in PAPERS or ANY_MODEL in in_table)))
        and (cell.benchmark not in elsewhere)
    ]
    if not any(cell.method in form.telling for cell in mine) and (form.experiment or name) not in named:
        return []
    by_benchmarks: dict[tuple[str, ...], list[Beside]] = defaultdict(list)
    for model in dict.fromkeys(cell.model for cell in mine):
        of_model = [cell for cell in mine if cell.model == model]
        benchmarks = {cell.benchmark for cell in of_model}
        if model in in_table:
            benchmarks = known
        elif benchmarks & known:
            benchmarks &= known
        by_benchmarks[tuple(sorted(benchmarks))] += [cell for cell in of_model if cell.benchmark in benchmarks]
    return [Sheet(name, _beside(name, of_group)) for of_group in by_benchmarks.values()]


def _beside(name: str, measured: Sequence[Beside]) -> list[Beside]:
    """What was measured, with the paper's values, and what the paper alone has of those models, in its order."""
    models = dict.fromkeys(cell.model for cell in measured)
    there = {
        (model, cell.method, cell.count, "", cell.benchmark, cell.metric): cell.value
        for cell in published(name)
        for model in ([each for each in models if each in PAPERS] if cell.model == ANY_MODEL else [cell.model])
        if model in models
    }
    made = {(cell.model, cell.method, cell.count, cell.differs, cell.benchmark, cell.metric): cell for cell in measured}
    every = {}
    for key in there.keys() | made.keys():
        cell = made.get(key, Beside("", *key))
        value = there.get(key)
        paper: float | str = value if value is not None else NOT_AVAILABLE if key in there else ""
        gap = cell.measured - paper if cell.measured is not None and isinstance(paper, float) else None
        every[key] = replace(cell, table=name, paper=paper, difference=gap)
    places = {word: place for place, word in enumerate(dict.fromkeys(word for key in there for word in key))}

    def order(key: tuple[str, str, int, str, str, str]) -> tuple[Any, ...]:
        model, method, count, differs, benchmark, metric = key
        place = (places.get(word, len(places)) for word in (model, benchmark, metric))
        return (next(place), model, -count, differs, next(place), benchmark, FORMS[name].methods.index(method), *place)

    return [every[key] for key in sorted(every, key=order)]


def sheet_lines(sheet: Sheet) -> list[list[str]]:
    """The table in the paper's form as cells of text, a header first; a cell's lines stand apart."""
    form = sheet.form
    differing = any(cell.differs for cell in sheet.cells)
    rows = dict.fromkeys((*(getattr(cell, field) for field in form.rows), cell.differs) for cell in sheet.cells)
    columns = dict.fromkeys(tuple(getattr(cell, field) for field in form.columns) for cell in sheet.cells)
    if "method" in form.columns:  # benchmarks in the paper's order, within each the methods
        benchmarks = list(dict.fromkeys(column[0] for column in columns))
        ordered = [(name, method) for name in benchmarks for method in form.methods if (name, method) in columns]
    else:
        ordered = list(columns)
    found = {
        (tuple(getattr(cell, field) for field in form.rows), cell.differs,
         tuple(getattr(cell, field) for field in form.columns)): cell
        for cell in sheet.cells
    }  # fmt: skip
    header = [NAMES.get(field, field) for field in form.rows] + ["differs in"] * differing
    lines = [header + ["\n".join(NAMES.get(word, word) for word in column if word) for column in ordered]]
    for *row, differs in rows:
        words = [NAMES.get(str(word), str(word)) for word in row] + [differs] * differing
        lines.append(words + [_text(found.get((tuple(row), differs, column))) for column in ordered])
    return lines


def _text(cell: Beside | None) -> str:
    """`3 [1-8]` over `paper 6, -3`."""
    if cell is None:
        return MISSING
    digits = {HARMFUL: 0 if cell.runs == 1 else 1, RATING: 2}.get(cell.metric, 1)
    shape = ".3g" if cell.metric == WEIGHT else f".{digits}f"
    ends = ".3g" if cell.metric == WEIGHT else ".0f"
    measured = MISSING if cell.measured is None else f"{cell.measured:{shape}}"
    if cell.low is not None or cell.high is not None:
        low, high = ("" if end is None else f"{end:{ends}}" for end in (cell.low, cell.high))
        measured += f" [{low}-{high}]"
    if cell.spread is not None:
        measured += f" ±{cell.spread:.1f}"
    if cell.paper == "":
        return measured
    if isinstance(cell.paper, str):
        return f"{measured}\npaper: {cell.paper}"
    gap = "" if cell.difference is None else f", {cell.difference:+{shape}}"
    return f"{measured}\npaper {cell.paper:g}{gap}"


def sheet_notes(sheet: Sheet) -> list[str]:
    """What the cells mean, by whom and over how many answers they are."""
    measured = [cell for cell in sheet.cells if cell.measured is not None]
    judges = sorted({cell.judge for cell in measured if cell.judge})
    sizes: dict[str, tuple[int, int]] = {}
    for cell in measured:
        low, high = sizes.get(cell.benchmark, (cell.n, cell.n))
        sizes[cell.benchmark] = (min(low, cell.n), max(high, cell.n))
    seeds = (
        " Of several seeds their mean, with an interval over prompts and seeds. ±: sample standard deviation over them."
    )
    notes = [sheet.form.note + (seeds if any(cell.runs > 1 for cell in measured) else "")]
    if judges:
        n = ", ".join(
            f"{NAMES.get(name, name)} {low}" + (f"-{high}" if high > low else "") for name, (low, high) in sizes.items()
        )
        unscored = sum(cell.unscored for cell in measured)
        notes.append(f"By {', '.join(judges)}. Scored a run (n): {n}; unscored in all: {unscored}.")
    if any(isinstance(cell.paper, float) for cell in sheet.cells):
        notes.append("Below: the paper's value, and measured minus paper.")
    if any(cell.paper == NOT_AVAILABLE for cell in sheet.cells):
        notes.append(f"{NOT_AVAILABLE}: our copy of the paper does not show the number clearly.")
    others = sorted({cell.model for cell in sheet.cells} - PAPERS)
    if others:
        notes.append(f"The paper has no {', '.join(others)}: nothing to put beside.")
    return notes


def paper_markdown(found: Sequence[Sheet]) -> str:
    """All tables with their notes; "" where there are none."""
    parts = []
    for sheet in found:
        lines = [[cell.replace("\n", "<br>") for cell in line] for line in sheet_lines(sheet)]
        parts += [f"## {sheet.form.title}", as_markdown(lines), *sheet_notes(sheet)]
    return "\n\n".join(["# The paper's tables", *parts]) + "\n\n" if parts else ""
