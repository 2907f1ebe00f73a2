"""The tables beside the main one: each judge alone, labels, scores, attacks, prefilling; as cells of text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tasft.report.summary import MISSING, Column, Summary, cell_of, select, setting_names, setting_words
from tasft.result.statistics import estimate
from tasft.result.table import ATTACK, MEAN, POOLED, PREFILL, TASK, Measurement


@dataclass(frozen=True)
class Section:
    """A table: its cells, a header first, and what they mean."""

    title: str
    lines: list[list[str]]
    notes: list[str]


def by_judge(summary: Summary) -> list[Section]:
    """The rates by each judge alone; none where there is one judge."""
    note = f"By each judge alone. Scored answers a run (n): {_sizes(summary, summary.by_judge)}."
    return [Section("By judge", _wide(summary, summary.by_judge), [note])] if summary.by_judge else []


def scores(summary: Summary) -> list[Section]:
    """Mean scores and lm-eval's metrics."""
    note = (
        "Means over the scored answers, each in its judge's own unit. low to high: 95 % t interval, of one run over its"
        " prompts, of several seeds over prompts and seeds, as above. s.e.: standard error; scores that are all equal"
        " tell of neither. ±: sample standard deviation over the seeds. Scored answers a run (n):"
        f" {_sizes(summary, summary.scores)}."
    )
    return [Section("Scores", _wide(summary, summary.scores), [note])] if summary.scores else []


def labels(summary: Summary) -> list[Section]:
    """What a judge's own words say, a table for each judge and a line for each kind of prompt."""
    return [
        Section(
            f"Labels of {judge}",
            _long(summary, [column for column in summary.labels if column.judge == judge], "prompts"),
            ["Per cent of the scored answers, by the judge's own words; several stand for one outcome, or for none."],
        )
        for judge in dict.fromkeys(column.judge for column in summary.labels)
    ]


def attacks(summary: Summary) -> list[Section]:
    """PAIR's success, a line for each set of goals."""
    columns = [column for column in summary.robust if column.kind == ATTACK]
    if not columns:
        return []
    how = sorted({row.judges for row in summary.rows if row.kind == ATTACK})
    notes = [
        "jailbroken: per cent of the goals whose attack has finished (n), by a best rating of the judge's threshold"
        f" or more; best rating: its mean over those goals. unscored: goals without any rating. {'; '.join(how)}."
    ]
    return [Section("Attacked (PAIR)", _long(summary, columns, "goals"), notes)]


def begun(summary: Summary) -> list[Section]:
    """Harm by the number of given tokens of a harmful answer."""
    columns = [column for column in summary.robust if column.kind == PREFILL]
    if not columns:
        return []
    by_names: dict[str, list[str]] = {}  # the benchmarks of a rate -> the columns whose rates are over them
    for column in columns:
        names = ", ".join(sorted(summary.over[column.judge, column.metric]))
        by_names.setdefault(names, []).append(f"{column.group} {column.name}")
    one = len(by_names) == 1
    on = "; ".join(f"{names} together" + ("" if one else f" ({', '.join(of)})") for names, of in by_names.items())
    notes = [
        "Per cent harmful of the answers that began with the first tokens of a harmful one: of the whole answer, and of"
        f" what the model added alone. On {on}; each by itself in prefill.csv."
    ]
    return [Section("Begun harmfully (prefilling)", _long(summary, columns, "judged"), notes)]


def _wide(summary: Summary, columns: Sequence[Column]) -> list[list[str]]:
    """A line for each setting, a column for each rate or score, and what each judge has left unscored."""
    judges = list(dict.fromkeys(column.judge for column in columns))
    units = ["" if column.metric == MEAN or column.kind == TASK else " %" for column in columns]
    header = [f"{column.group}{unit}<br>{column.name}" for column, unit in zip(columns, units, strict=True)]
    unscored = [f"unscored<br>{judge}" for judge in judges] if len(judges) > 1 else ["unscored"]
    lines = [[*setting_names(summary), *header, *unscored]]
    for line in summary.lines:
        rows = summary.of(line.setting)
        chosen = [select(rows, column) for column in columns]
        missing = [_unscored([row for of in chosen for row in of if row.judge == judge]) for judge in judges]
        lines.append([*setting_words(summary, line), *map(_text, chosen), *missing])
    return lines


def _long(summary: Summary, columns: Sequence[Column], what: str) -> list[list[str]]:
    """A line for each setting and group of columns that differ in their metric alone; n and unscored stand in it."""
    judges = {column.judge for column in columns}
    groups: dict[str, dict[str, Column]] = {}
    for column in columns:
        said = column.group.removeprefix(f"{column.judge}: ")
        group, word = (said, column.name) if column.kind == PREFILL else (column.name, said)
        group = f"{column.judge}: {group}" if len(judges) > 1 else group
        groups.setdefault(group, {})[word] = column
    words = dict.fromkeys(word for of_group in groups.values() for word in of_group)
    lines = [[*setting_names(summary), what, *words, "n", "unscored"]]
    for line in summary.lines:
        rows = summary.of(line.setting)
        for group, of_group in groups.items():
            chosen = {word: select(rows, column) for word, column in of_group.items()}
            every = [row for of in chosen.values() for row in of]
            if every:
                cells = [_text(chosen.get(word, [])) for word in words]
                lines.append([*setting_words(summary, line), group, *cells, _n(every), _unscored(every)])
    return lines


def _text(rows: Sequence[Measurement]) -> str:
    """`30.0 [11-60] ±14.1` of a rate, `0.5 [-0.4 to 1.4], s.e. 0.4` of a mean."""
    made = estimate(rows)
    if made is None:
        return MISSING
    if rows[0].metric != MEAN and rows[0].kind != TASK:
        cell = cell_of(rows)
        return MISSING if cell is None else cell.text
    ends = "" if made.low is None or made.high is None else f" [{made.low:.3g} to {made.high:.3g}]"
    spread = "" if made.spread is None else f" ±{made.spread:.2g}"
    stderr = f", s.e. {rows[0].stderr:.2g}" if made.runs == 1 and ends and rows[0].stderr is not None else ""
    return f"{made.value:.3g}{ends}{spread}{stderr}"


def _n(rows: Iterable[Measurement]) -> str:
    counts = sorted({row.n for row in rows})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"


def _unscored(rows: Iterable[Measurement]) -> str:
    """Of all runs together; outcomes and labels of one answer count once, and pooled ones with their benchmarks."""
    return str(sum({(row.run, row.judge, row.kind, row.benchmark): row.unscored for row in rows}.values()))


def _sizes(summary: Summary, columns: Sequence[Column]) -> str:
    """`deberta: i_cona 178, i_malicious 98-100`."""
    sizes: dict[str, dict[str, str]] = {}
    for column in columns:
        name = "all toxic" if column.benchmark == POOLED else column.benchmark
        sizes.setdefault(column.judge, {})[name] = _n(select(summary.rows, column))
    return "; ".join(f"{judge}: " + ", ".join(map(" ".join, of.items())) for judge, of in sizes.items())
