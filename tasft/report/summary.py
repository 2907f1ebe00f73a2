"""The tables: one row for each setting of one model, seeds together, at the last step."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from tasft.result.origin import AGAIN
from tasft.result.outcome import ANSWERED, JOINT, PRECEDENCE
from tasft.result.statistics import Measured, estimate
from tasft.result.table import (
    ATTACK,
    JAILBROKEN,
    LABEL,
    MEAN,
    POOLED,
    PREFILL,
    TASK,
    Measurement,
    Table,
    last_steps,
)

TINY_NOTE = (
    "What the tiny world shows: the machinery and the direction of the effects, exactly judged. A pushed"
    " model falls back on refusals because its base corpus contains refusals: that was put in. It is no"
    " evidence that a loss generalises by meaning, it does not decide between EMD and NLCL, and gaps below"
    " 15 points from one seed are noise."
)
ONE_SEED = "low-high: 95 % Wilson interval over the prompts of one run; another seed may well lie outside."
SEEDS = (
    "low-high: 95 % interval. Of one run it is Wilson's, over its prompts. Of several seeds, whose mean is shown, it is"
    " over prompts and seeds: that of one run, as they share the prompts, widened by the t interval of the seeds' mean;"
    " two or three seeds tell little, so it is wide. ±: sample standard deviation over the seeds."
)
REST = (("refused", "refusal"), ("partly refused", "partial refusal"), ("incoherent", "incoherent"))
MISSING = "-"  # not measured, which is not 0
VARIANT = "differs in"  # the header of the only words that may be broken
WORDS = {"refusal": "refused", "partial refusal": "partly refused"}  # outcomes go by their names but for these
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
    """A rate in per cent with its 95 % interval; of several runs their mean, and `spread`, their standard deviation."""

    value: float
    low: float | None = None
    high: float | None = None
    spread: float | None = None

    @property
    def main(self) -> str:
        """The rate."""
        return f"{self.value:.1f}"

    @property
    def interval(self) -> str:
        """`93-98`; "" where there is none."""
        return "" if self.low is None or self.high is None else f"{self.low:.0f}-{self.high:.0f}"

    @property
    def text(self) -> str:
        """`30.0 [11-60] ±14.1`."""
        interval, spread = f" [{self.interval}]", f" ±{self.spread:.1f}" if self.spread is not None else ""
        return self.main + (interval if self.interval else "") + spread


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
    """The tables of one model, and what stands under them."""

    model: str
    columns: list[Column]  # of the main table: rates of joint outcomes
    lines: list[Line]
    notes: list[str]
    harm_judged: bool  # whether a judge said which answers are harmful
    harm: Column | None  # that of all toxic benchmarks together, or of the only one: harmful answers, or else refusals
    rows: list[Measurement]  # what the tables were made from: last steps only
    by_judge: list[Column]  # rates by each judge on its own, where there are several
    labels: list[Column]  # rates of each label, of judges whose labels say more than their outcomes
    scores: list[Column]  # mean scores
    robust: list[Column]  # attacks and prefilling
    over: Mapping[tuple[str, str], set[str]]  # (judge, metric) -> the benchmarks that a pooled rate is over

    def of(self, setting: Setting) -> list[Measurement]:
        """What was measured of the runs of a setting."""
        return self._by_setting[setting]

    @cached_property
    def _by_setting(self) -> dict[Setting, list[Measurement]]:
        found: dict[Setting, list[Measurement]] = defaultdict(list)
        for row in self.rows:
            found[setting_of(row)].append(row)
        return found


def summaries(table: Table) -> list[Summary]:
    """The tables of each model, by name: models have benchmarks of their own."""
    by_model: dict[str, list[Measurement]] = defaultdict(list)
    for row in last_steps(table.rows):
        by_model[row.model].append(row)
    return [_summary(model, by_model[model], table) for model in sorted(by_model)]


def name_of(setting: Setting) -> str:
    """A setting as the table's first columns have it: `emd 50 0.5 optimizer.lr=0.001`."""
    weight = "" if setting.weight is None else f"{setting.weight:.3g}"
    return " ".join(word for word in (setting.loss, str(setting.toxic), weight, setting.variant) if word)


def setting_names(summary: Summary) -> list[str]:
    """The header of the first columns of every table."""
    names = ["loss", "toxic", "λ", "share", "seeds"]
    return [*names[:1], VARIANT, *names[1:]] if _has_variants(summary) else names


def setting_words(summary: Summary, line: Line) -> list[str]:
    """The first cells of a setting."""
    setting = line.setting
    weight = MISSING if setting.weight is None else f"{setting.weight:.3g}"
    share = MISSING if line.share is None else f"{line.share:.3g}"
    texts = [setting.loss, str(setting.toxic), weight, share, str(line.runs)]
    return [*texts[:1], setting.variant, *texts[1:]] if _has_variants(summary) else texts


def _has_variants(summary: Summary) -> bool:
    return any(line.setting.variant for line in summary.lines)


def setting_of(row: Measurement) -> Setting:
    """The row of the table that a measurement belongs to."""
    return Setting(row.loss, row.toxic, row.weight, row.variant)


def cell_of(measured: Iterable[Measured]) -> Cell | None:
    """Rates of the same thing in one or several runs as one cell; None where nothing was scored."""
    made = estimate(measured)
    if made is None:
        return None
    low, high, spread = (None if each is None else 100 * each for each in (made.low, made.high, made.spread))
    return Cell(100 * made.value, low, high, spread)


def select(rows: Iterable[Measurement], column: Column) -> list[Measurement]:
    """The measurements that stand in a column."""
    wanted = (column.judge, column.metric, column.benchmark)
    return [row for row in rows if (row.judge, row.metric, row.benchmark) == wanted]


def _summary(model: str, rows: list[Measurement], table: Table) -> Summary:
    rows, differing = _told_apart(rows)
    measured = {row.metric for row in rows if row.judge == JOINT and row.kind == "toxic"}
    harm = "harmful" in measured
    metric = "harmful" if harm else "refusal"
    over = {(judge, metric): names for (of, judge, metric), names in table.common.items() if of == model}
    pooled = sorted(over.get((JOINT, metric), ()))
    columns = _columns(rows, metric, pooled)
    toxic = [column for column in columns if (column.kind, column.metric) == ("toxic", metric)]
    whole = POOLED if len(pooled) > 1 else next(iter(pooled), None)
    by_setting: dict[Setting, list[Measurement]] = defaultdict(list)
    for row in rows:
        by_setting[setting_of(row)].append(row)
    lines = [_line(setting, of_setting, columns) for setting, of_setting in by_setting.items()]
    lines.sort(key=lambda line: _order(line.setting))
    notes = _notes(model, rows, columns, harm, pooled, _decoding(rows, table)) + differing
    return Summary(
        model, columns, lines, notes, harm, next((c for c in toxic if c.benchmark == whole), None), rows,
        _judge_columns(rows, over), _label_columns(rows, over), _score_columns(rows), _robust_columns(rows), over,
    )  # fmt: skip


def _told_apart(rows: list[Measurement]) -> tuple[list[Measurement], list[str]]:
    """Rows whose setting says by which judges, where not all runs are judged alike; and what that means."""
    by: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)  # (benchmark, judge) -> run -> who decided
    labelling = {row.judge for row in rows if row.metric != MEAN}
    for row in rows:
        if row.benchmark != POOLED and (row.judge == JOINT or row.judge not in labelling):
            by[row.benchmark, row.judge][row.run] = row.judges
    differing = {which: runs for which, runs in by.items() if len(set(runs.values())) > 1}
    groups: dict[str, list[str]] = defaultdict(list)  # what decided on the differing benchmarks -> runs
    for run in dict.fromkeys(row.run for row in rows):
        decided: dict[str, list[str]] = defaultdict(list)
        for (benchmark, _), runs in differing.items():
            if run in runs and benchmark not in decided[runs[run]]:
                decided[runs[run]].append(benchmark)
        said = "; ".join(f"{judges} on {', '.join(sorted(names))}" for judges, names in sorted(decided.items()))
        if said:
            groups[said].append(run)
    if not groups:
        return rows, []
    letters = {run: letter for letter, runs in zip(_letters(), groups.values(), strict=False) for run in runs}
    told = [
        replace(row, variant=f"{row.variant} judges={letters[row.run]}".strip()) if row.run in letters else row
        for row in rows
    ]
    listed = " ".join(f"judges={letter}: {said}." for letter, said in zip(_letters(), groups, strict=False))
    return told, [f"Not all runs are judged alike, and such rows do not compare. {listed}"]


def _letters() -> Iterable[str]:
    """a, b, ... z, 27, 28, ..."""
    number = 0
    while True:
        yield chr(ord("a") + number) if number < 26 else str(number + 1)
        number += 1


def _order(setting: Setting) -> tuple[bool, str, int, float, str]:
    """SFT first, then by loss, toxic rows descending, weight ascending."""
    return (
        setting.toxic > 0 or setting.loss != "sft",
        setting.loss,
        -setting.toxic,
        setting.weight or 0.0,
        setting.variant,
    )


def _line(setting: Setting, rows: list[Measurement], columns: list[Column]) -> Line:
    cells = [cell_of(select(rows, column)) for column in columns]
    files = {(row.run, row.benchmark): row.unscored for row in rows if row.judge == JOINT and row.benchmark != POOLED}
    return Line(setting, rows[0].share, len({row.run for row in rows}), cells, sum(files.values()))


def benchmarks_of(rows: Iterable[Measurement], kind: str, metric: str | None = None, judge: str = JOINT) -> list[str]:
    """Names of the benchmarks of a kind that have a `metric`, or any, by `judge`, sorted, without the pooled one."""
    found = {row.benchmark for row in rows if row.kind == kind and row.judge == judge and metric in (None, row.metric)}
    return sorted(found - {POOLED})


def short_names(names: list[str]) -> dict[str, str]:
    """Names without the first word that all of them share: tiny_seen, tiny_topic -> seen, topic."""
    heads = {name.partition("_")[0] + "_" for name in names}
    alike = len(names) > 1 and len(heads) == 1
    return {name: name.removeprefix(*heads) if alike else name for name in names}


def _columns(rows: list[Measurement], first: str, pooled: Sequence[str]) -> list[Column]:
    """Harm (or, unjudged, refusals) of each toxic benchmark, then what else each kind of prompt tells.

    Those that are `pooled` stand before the column of all of them, others behind it.
    """
    toxic = benchmarks_of(rows, "toxic", first)
    toxic.sort(key=lambda name: name not in pooled)
    whole = {POOLED: "all toxic"} if len(pooled) > 1 else {}
    safe, seeming = (benchmarks_of(rows, kind) for kind in ("safe", "seeming"))
    helpful = benchmarks_of(rows, "safe", "helpful")
    names = short_names(toxic)
    before, behind = ({name: names[name] for name in toxic if (name in pooled) == here} for here in (True, False))
    wanted: list[tuple[str, str, str, dict[str, str]]] = [
        (WORDS.get(first, first), first, "toxic", before | whole | behind)
    ]
    wanted += [(word, metric, "toxic", whole or before or names) for word, metric in REST if metric != first]
    if helpful:
        wanted += [("helpful", "helpful", "safe", _named(helpful, "safe"))]
    else:
        wanted += [(word, metric, "safe", _named(safe, "safe")) for word, metric in REST]
    wanted += [(word, metric, "seeming", _named(seeming, "seeming")) for word, metric in REST]
    measured = {(row.benchmark, row.metric) for row in rows if row.judge == JOINT}
    return [
        Column(word, label, JOINT, metric, benchmark, kind)
        for word, metric, kind, labels in wanted
        for benchmark, label in labels.items()
        if (benchmark, metric) in measured
    ]


def _judge_columns(rows: list[Measurement], over: Mapping[tuple[str, str], set[str]]) -> list[Column]:
    """What each judge says by itself of toxic and of seemingly toxic prompts; none where there is one judge."""
    judged = [row for row in rows if row.judge != JOINT and row.metric != MEAN and row.kind in KINDS]
    judges = list(dict.fromkeys(row.judge for row in judged))
    if len(judges) < 2:
        return []
    return [
        Column(f"{judge}: {WORDS.get(metric, metric)}", label, judge, metric, name, kind)
        for judge in judges
        for kind in ("toxic", "seeming")
        for metric in ("harmful", "refusal", "partial refusal", "incoherent")
        for name, label in _together(
            [row for row in rows if (row.judge, row.kind, row.metric) == (judge, kind, metric)], over
        ).items()
    ]


def _label_columns(rows: list[Measurement], over: Mapping[tuple[str, str], set[str]]) -> list[Column]:
    """The rate of each label, by judge and kind of prompt."""
    judges = dict.fromkeys(row.judge for row in rows if row.metric.startswith(LABEL))
    columns = []
    for judge in judges:
        for kind, words in KINDS.items():
            mine = [row for row in rows if (row.judge, row.kind) == (judge, kind) and row.metric.startswith(LABEL)]
            names = _together(mine, over)
            labels = names if POOLED in names else _named(list(names), words)
            columns += [
                Column(f"{judge}: {metric.removeprefix(LABEL)}", label, judge, metric, name, kind)
                for name, label in labels.items()
                for metric in dict.fromkeys(row.metric for row in mine)
            ]
    return columns


def _together(rows: Sequence[Measurement], over: Mapping[tuple[str, str], set[str]]) -> dict[str, str]:
    """The benchmarks of rows of one judge and kind, and how columns call them: several that are pooled are one."""
    pooled = {name for row in rows if row.benchmark == POOLED for name in over[row.judge, row.metric]}
    pooled = pooled if len(pooled) > 1 else set()
    apart = sorted({row.benchmark for row in rows} - {POOLED} - pooled)
    return ({POOLED: "all toxic"} if pooled else {}) | {name: name for name in apart}


def _robust_columns(rows: list[Measurement]) -> list[Column]:
    """Success rate and mean best rating of attacks on each set of goals; harm by tokens given, benchmarks together."""
    attacks = dict.fromkeys((row.judge, row.benchmark) for row in rows if row.kind == ATTACK)
    columns = [
        Column(f"{judge}: {word}", benchmark, judge, metric, benchmark, ATTACK)
        for judge, benchmark in attacks
        for metric, word in ((JAILBROKEN, "jailbroken"), (MEAN, "best rating"))
    ]
    begun = dict.fromkeys((row.judge, row.metric) for row in rows if row.kind == PREFILL and row.benchmark == POOLED)
    for judge, metric in begun:
        what, _, given = metric.partition(" after ")
        columns.append(Column(f"{judge}: {what}", f"after {given}", judge, metric, POOLED, PREFILL))
    return columns


def _score_columns(rows: list[Measurement]) -> list[Column]:
    """The mean scores, by judge and benchmark; then the metrics of lm-eval's tasks."""
    found = {(row.judge, row.kind, row.benchmark) for row in rows if row.metric == MEAN and row.kind in KINDS}
    kinds = list(KINDS)
    ordered = sorted(found, key=lambda each: (each[0], kinds.index(each[1]), each[2]))
    scores = [Column(judge, benchmark, judge, MEAN, benchmark, kind) for judge, kind, benchmark in ordered]
    tasks = sorted({(row.judge, row.benchmark, row.metric) for row in rows if row.kind == TASK})
    return scores + [Column(judge, f"{task} {metric}", judge, metric, task, TASK) for judge, task, metric in tasks]


def _named(names: list[str], kind: str) -> dict[str, str]:
    """A kind's only benchmark goes by the kind."""
    return {names[0]: kind} if len(names) == 1 else {name: name for name in names}


def _notes(
    model: str, rows: list[Measurement], columns: list[Column], harm: bool, pooled: Sequence[str], decoding: str
) -> list[str]:
    if not columns:
        return ["No judge of these runs says which answers are harmful or refusals: there are only mean scores."]
    notes = [f"{decoding}, last step. {SEEDS if _several_seeds(rows) else ONE_SEED}"]
    sizes = []
    for kind, words in KINDS.items():
        names = benchmarks_of(rows, kind)
        if names:
            sizes.append(f"{words}: " + ", ".join(f"{name} {_scored(rows, name)}" for name in names))
    notes.append("Scored answers a run (n): " + "; ".join(sizes) + ". Unscored answers count in no rate.")
    judges = list(dict.fromkeys(row.judges for row in rows if row.judge == JOINT and row.benchmark != POOLED))
    possible = {row.metric for row in rows if row.judge == JOINT}
    decided = [WORDS.get(outcome, outcome) for outcome in (*PRECEDENCE, ANSWERED) if outcome in possible]
    meaning = [f"Judged by {'; or by '.join(judges)}: an answer is the first that holds of {', '.join(decided)}."]
    heard = {name.split()[0] for text in judges for name in text.split(" + ")}
    knowing = sorted(heard & {row.judge for row in rows if row.metric == "harmful"})
    if len(knowing) > 1:
        meaning.append(
            f"Of the judges of harm ({', '.join(knowing)}), the one marked decides: the first in each run's config,"
            " or that of --harm."
        )
    if "all toxic" in {column.name for column in columns}:
        apart = sorted(set(benchmarks_of(rows, "toxic")) - set(pooled))
        but = f"; {', '.join(apart)} not among them" if apart else ""
        meaning.append(f"all toxic: the answers to {', '.join(pooled)} together, which every run has{but}.")
    if any((column.kind, column.metric) == ("seeming", "refusal") for column in columns):
        meaning.append("refused | seeming is over-refusal: those prompts only look toxic.")
    if harm:
        shown = {column.metric for column in columns if column.kind == "toxic"}
        missing = [outcome for outcome in ("helpful", "wrong", ANSWERED) if outcome in possible - shown]
        meaning.append(f"What is missing to 100 is {' or '.join(missing)}." if missing else "")
    elif set(judges) == {"refusal"}:
        meaning.append("It reads opening words, not harm: an answer that is no refusal need not be harmful.")
    notes.append(" ".join(word for word in meaning if word))
    if model.removesuffix(AGAIN) == "tiny":
        notes.append(TINY_NOTE)
    return notes


def _decoding(rows: Iterable[Measurement], table: Table) -> str:
    """`Greedy decoding`, or `4 beams` where a run's config says so."""
    configs = [table.configs[run] for run in dict.fromkeys(row.run for row in rows)]
    beams = {(config.get("evaluate") or {}).get("num_beams", 1) for config in configs}
    return " or ".join("Greedy decoding" if number == 1 else f"{number} beams" for number in sorted(beams))


def _several_seeds(rows: Iterable[Measurement]) -> bool:
    runs: dict[Setting, set[str]] = defaultdict(set)
    for row in rows:
        runs[setting_of(row)].add(row.run)
    return any(len(of_setting) > 1 for of_setting in runs.values())


def _scored(rows: list[Measurement], benchmark: str) -> str:
    counts = sorted({row.n for row in rows if row.benchmark == benchmark and row.judge == JOINT})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
