"""Two settings on the same prompts: what differs, how sure that is, and who was compared with whom."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tasft.errors import UserError
from tasft.report.summary import Column, Setting, Summary, name_of, select
from tasft.result.origin import PLAIN
from tasft.result.paired import DRAWS, holm, mcnemar, paired_bootstrap, tango
from tasft.result.table import MEAN, TASK, Measurement, Table

MCNEMAR, BOOTSTRAP, TANGO = "McNemar, exact", "paired bootstrap", "Tango, score"
NOTE = (
    "setting - against, in points (mean scores: in the judge's unit), on the prompts that all their runs have scored."
    " low to high: 95 % interval. Where each has one run and an answer is yes or no: Tango's score interval, and p of"
    f" McNemar's exact test. Else percentiles of {DRAWS:,} seeded bootstrap draws, which resample prompts, the same for"
    " both, and seeds, the same for both where they have the same, and the bootstrap's p; where no draw differs, the"
    " interval is Tango's of one run, and none for a mean score. p is corrected after Holm for the settings in one"
    " column. With one seed, how much seeds vary is in neither; with two or three the interval is too narrow."
)


@dataclass(frozen=True)
class Comparison:
    """One rate or mean score of a setting and of the one it is compared with; fractions, not per cent.

    `n` prompts are scored in every run of both; `left_out` ones are not in all of them, or unscored in one. The two
    only_* are the prompts on which single runs differ: None where McNemar's test does not apply. `low` and `high` are
    None, and `interval` empty, where prompts and seeds do not tell of any.
    """

    model: str
    setting: str
    against: str
    benchmark: str
    kind: str
    judge: str
    metric: str
    value: float
    against_value: float
    difference: float
    low: float | None
    high: float | None
    interval: str
    test: str
    p: float
    p_holm: float
    runs: int
    against_runs: int
    n: int
    left_out: int
    only_setting: int | None
    only_against: int | None


def compare(
    table: Table, summaries: Sequence[Summary], asked: Sequence[tuple[str, str]] = ()
) -> tuple[list[Comparison], list[str]]:
    """Every pair of settings in `asked`, or every setting against plain SFT of its model; and what was left out.

    UserError where a setting that is asked for is in no table, or is several.
    """
    found: list[Comparison] = []
    notes: list[str] = []
    for summary in summaries:
        settings = [line.setting for line in summary.lines]
        pairs = _asked(asked, summary) if asked else _against_sft(settings)
        if not asked and not pairs and len(settings) > 1:
            notes.append(f"{summary.model}: no plain SFT, or several, to compare with: --compare takes any two.")
        kept = [c for c in [*summary.columns, *summary.scores] if c.kind != TASK]  # of tasks no single answers are kept
        columns = list({(c.judge, c.metric, c.benchmark): c for c in kept}.values())
        for column in columns:
            of_column = [_compared(table, summary, column, *pair) for pair in pairs]
            notes += [each for each in of_column if isinstance(each, str)]
            made = [each for each in of_column if isinstance(each, Comparison)]
            corrected = holm([each.p for each in made])
            found += [replace(each, p_holm=p) for each, p in zip(made, corrected, strict=True)]
    for pair in asked:
        if not any(_matches(pair[0], summary) and _matches(pair[1], summary) for summary in summaries):
            there = sorted({name_of(line.setting) for summary in summaries for line in summary.lines})
            raise UserError(f"--compare {pair[0]!r} {pair[1]!r}: no model has both; there are {', '.join(there)}")
    return found, list(dict.fromkeys(notes))


def _against_sft(settings: Sequence[Setting]) -> list[tuple[Setting, Setting]]:
    """Every other setting with plain SFT: the one without further differences, judged alike where there are several.

    A setting that tunes a tuned model again is compared with plain SFT that is tuned again in the same way.
    """
    pairs = []
    for each in settings:
        plain = _plain(each, settings)
        if plain and each not in plain:
            pairs.append((each, next((sft for sft in plain if _judges(sft) == _judges(each)), plain[0])))
    return pairs


def _plain(setting: Setting, settings: Sequence[Setting]) -> list[Setting]:
    """What plain SFT is for a setting."""
    if _origin(setting):
        return [each for each in settings if f"from={PLAIN}" in _origin(each) and _way(each) == _way(setting)]
    plain = [each for each in settings if each.loss == "sft" and not _differs(each)]
    alone = [each for each in settings if each.loss == "sft"]
    return plain or (alone if len(alone) == 1 else [])


def _origin(setting: Setting) -> list[str]:
    """What a setting goes on from: nothing where no tuned model is tuned again."""
    return [word for word in setting.variant.split() if word.startswith(("from=", "from."))]


def _way(setting: Setting) -> tuple[str, int, float | None, list[str]]:
    """How a tuned model is tuned again."""
    words = [word for word in _differs(setting) if word not in _origin(setting)]
    return setting.loss, setting.toxic, setting.weight, words


def _differs(setting: Setting) -> list[str]:
    return [word for word in setting.variant.split() if not word.startswith("judges=") and not word.endswith("=None")]


def _judges(setting: Setting) -> list[str]:
    return [word for word in setting.variant.split() if word.startswith("judges=")]


def _asked(asked: Sequence[tuple[str, str]], summary: Summary) -> list[tuple[Setting, Setting]]:
    pairs = []
    for first, second in asked:
        of_first, of_second = _matches(first, summary), _matches(second, summary)
        for words, matches in ((first, of_first), (second, of_second)):
            if len(matches) > 1:
                names = ", ".join(repr(name_of(match)) for match in matches)
                raise UserError(f"--compare {words!r} is several settings of {summary.model}: {names}; say which")
        if of_first and of_second:
            pairs.append((of_first[0], of_second[0]))
    return pairs


def _matches(words: str, summary: Summary) -> list[Setting]:
    """The settings whose loss, toxic rows, λ begin so and who differ in what is named; a name in full is that one."""
    settings = [line.setting for line in summary.lines]
    exact = [each for each in settings if name_of(each).split() == words.split()]
    if exact:
        return exact
    head = [word for word in words.split() if "=" not in word]
    named = {word for word in words.split() if "=" in word}
    return [
        each
        for each in settings
        if name_of(replace(each, variant="")).split()[: len(head)] == head and named <= set(each.variant.split())
    ]


def _compared(
    table: Table, summary: Summary, column: Column, setting: Setting, against: Setting
) -> Comparison | str | None:
    """The comparison in one column; a sentence where it would not be fair; None where one of them lacks the column."""
    both = [_runs(select(summary.of(each), column)) for each in (setting, against)]
    if not all(both):
        return None
    names = name_of(setting), name_of(against)
    if len({row.judges for rows in both for row in rows}) > 1:
        return f"{names[0]} and {names[1]} are judged differently on {column.benchmark}: not compared."
    values = [[table.values(row) for row in rows] for rows in both]
    of_runs = [given for of_setting in values for given in of_setting]
    asked = set().union(*of_runs)
    prompts = [prompt for prompt in sorted(asked) if all(given.get(prompt) is not None for given in of_runs)]
    if not prompts:
        return f"{names[0]} and {names[1]} have no prompt of {column.benchmark} in common that is scored: not compared."
    first, second = (np.array([[given[prompt] for prompt in prompts] for given in each], float) for each in values)
    seeds = [[row.seed for row in rows] for rows in both]
    difference = paired_bootstrap(first, second, same_seeds=seeds[0] == seeds[1])
    low, high, interval, test, p = difference.low, difference.high, BOOTSTRAP, BOOTSTRAP, difference.p
    exact = None
    if column.metric != MEAN and len(first) == len(second) == 1:
        exact = mcnemar(first[0] > 0.5, second[0] > 0.5)
        (low, high), interval = tango(exact.only_first, exact.only_second, len(prompts)), TANGO
        test, p = MCNEMAR, exact.p
    elif column.metric != MEAN and low is None:  # all prompts differ in all runs, or none does
        apart = round(difference.value * len(prompts))
        (low, high), interval = tango(max(apart, 0), max(-apart, 0), len(prompts)), TANGO
    return Comparison(
        summary.model, *names, column.benchmark, column.kind, column.judge, column.metric,
        float(first.mean()), float(second.mean()), difference.value, low, high, interval if low is not None else "",
        test, p, p, len(first), len(second), len(prompts), len(asked) - len(prompts),
        exact.only_first if exact else None, exact.only_second if exact else None,
    )  # fmt: skip


def _runs(rows: list[Measurement]) -> list[Measurement]:
    """The rows with a value, by seed."""
    return sorted((row for row in rows if row.value is not None), key=lambda row: (row.seed, row.run))


def by_pair(comparisons: Iterable[Comparison]) -> dict[tuple[str, str], list[Comparison]]:
    """(Setting, against) -> its comparisons."""
    pairs: dict[tuple[str, str], list[Comparison]] = defaultdict(list)
    for each in comparisons:
        pairs[each.setting, each.against].append(each)
    return pairs
