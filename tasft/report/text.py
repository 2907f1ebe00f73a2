"""The tables as rich tables and as markdown: the same numbers twice."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from tasft.report.compare import NOTE, Comparison, by_pair
from tasft.report.summary import Cell, Column, Line, Summary, cell_of, select
from tasft.result.statistics import mean_and_spread
from tasft.result.table import MEAN, POOLED, Measurement

MISSING = "-"  # not measured, which is not 0
VARIANT = "differs in"  # the header of the only words that may be broken


def rich_tables(summary: Summary, width: int) -> tuple[list[RichTable], str]:
    """The table for a terminal of `width` columns, and what it leaves out, "" for nothing.

    Where it is too wide, toxic benchmarks stand together only; where that is, it is cut into several below each other.
    """
    columns, left_out = summary.columns, ""
    if not _fits(summary, columns, width) and any((c.kind, c.benchmark) == ("toxic", POOLED) for c in columns):
        columns = [column for column in columns if column.kind != "toxic" or column.benchmark == POOLED]
        left_out = "The toxic benchmarks one by one, for which this terminal is too narrow, are in table.md."
    blocks: list[list[Column]] = [[]]
    for column in columns:
        if blocks[-1] and not _fits(summary, [*blocks[-1], column], width):
            blocks.append([])
        blocks[-1].append(column)
    return [_rich_table(summary, block) for block in blocks], left_out


def _fits(summary: Summary, columns: Sequence[Column], width: int) -> bool:
    return Console(width=10_000).measure(_rich_table(summary, columns)).minimum <= width


def _rich_table(summary: Summary, columns: Sequence[Column]) -> RichTable:
    """Some columns of the table; intervals stand below their rates, so that a dozen columns fit."""
    title = Text.assemble((summary.model, "bold"), ": per cent of scored answers")
    table = RichTable(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in _setting_names(summary):
        words = name in ("loss", VARIANT)
        table.add_column(name, justify="left" if words else "right", no_wrap=name != VARIANT, overflow="fold")
    for column in columns:
        name = column.name.replace("_", "_\n") if len(column.name) > 9 else column.name.replace(" ", "\n")
        table.add_column(
            Text.assemble((column.group.replace("incoh", "inco-\nh"), "bold"), "\n", (name, "not bold")),
            justify="right",
            no_wrap=True,
        )
    table.add_column("un-\nscored", justify="right", no_wrap=True)
    places = [summary.columns.index(column) for column in columns]
    for line, following in zip(summary.lines, [*summary.lines[1:], None], strict=True):
        cells = [_rich_cell(line.cells[place]) for place in places]
        ends = following is not None and following.setting.loss != line.setting.loss
        table.add_row(*map(Text, _setting(summary, line)), *cells, Text(str(line.unscored)), end_section=ends)
    return table


def rich_further(title: str, lines: list[list[str]]) -> RichTable:
    """Another table for a terminal, from its cells, the header first."""
    table = RichTable(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, name in enumerate(lines[0]):
        table.add_column(Text(name.replace("<br>", "\n")), justify="right" if number else "left")
    for line in lines[1:]:
        table.add_row(*map(Text, line))
    return table


def markdown(
    summaries: list[Summary], runs: list[str], comparisons: Sequence[Comparison] = (), not_compared: Sequence[str] = ()
) -> str:
    """The tables of all models, each between its name and its notes; `runs` says what was left out."""
    parts = ["# Results", *runs]
    for summary in summaries:
        parts.append(f"## {summary.model}")
        if summary.columns:
            parts.append(as_markdown(_main_cells(summary)))
        parts += summary.notes
        if summary.by_judge:
            notes = [f"By each judge alone. n: {_sizes(summary, summary.by_judge)}."]
            parts += ["### By judge", as_markdown(judge_cells(summary)), *notes]
        if summary.scores:
            parts += ["### Scores", as_markdown(score_cells(summary)), scores_note(summary)]
        of_model = [each for each in comparisons if each.model == summary.model]
        if of_model:
            parts += ["### Compared", as_markdown(comparison_cells(of_model, summary)), NOTE, *not_compared]
    return "\n\n".join(parts) + "\n"


def as_markdown(lines: list[list[str]]) -> str:
    """Cells, the header first, as a markdown table."""
    ruled = [lines[0], [":--", *["--:"] * (len(lines[0]) - 1)], *lines[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in ruled)


def score_cells(summary: Summary) -> list[list[str]]:
    """Mean scores, one line for each setting, a header first."""
    lines = [[*_setting_names(summary), *(f"{column.group}<br>{column.name}" for column in summary.scores), "unscored"]]
    for line in summary.lines:
        rows = summary.of(line.setting)
        chosen = [select(rows, column) for column in summary.scores]
        cells = [_score([row for row in each if row.value is not None]) for each in chosen]
        lines.append([*_setting(summary, line), *cells, str(sum(row.unscored for each in chosen for row in each))])
    return lines


def judge_cells(summary: Summary) -> list[list[str]]:
    """The rates by each judge alone, one line for each setting, a header first."""
    header = [f"{column.group} %<br>{column.name}" for column in summary.by_judge]
    lines = [[*_setting_names(summary), *header]]
    for line in summary.lines:
        rows = summary.of(line.setting)
        cells = [_markdown_cell(cell_of(select(rows, column))) for column in summary.by_judge]
        lines.append([*_setting(summary, line), *cells])
    return lines


def scores_note(summary: Summary) -> str:
    """What the cells of the scores mean, and over how many answers they are."""
    return (
        "Means over the scored answers, each in its judge's own unit. low to high: 95 % t interval over the prompts of"
        " one run, s.e.: standard error; scores that are all equal tell of neither. ±: sample standard deviation over"
        f" the seeds whose mean is shown. Scored answers a run (n): {_sizes(summary, summary.scores)}."
    )


def comparison_cells(comparisons: Sequence[Comparison], summary: Summary) -> list[list[str]]:
    """One line for each pair of settings, a column for each rate, a header first."""
    columns = list(dict.fromkeys((each.judge, each.metric, each.benchmark) for each in comparisons))
    names = {(c.judge, c.metric, c.benchmark): f"{c.group}<br>{c.name}" for c in [*summary.scores, *summary.columns]}
    lines = [["setting", "against", *(names[column] for column in columns)]]
    for (setting, against), of_pair in by_pair(comparisons).items():
        found = {(each.judge, each.metric, each.benchmark): each for each in of_pair}
        lines.append([setting, against, *(_difference(found.get(column)) for column in columns)])
    return lines


def comparison_lines(comparisons: Sequence[Comparison], summary: Summary) -> list[list[str]]:
    """One line for each comparison, a header first: for a terminal."""
    names = {(c.judge, c.metric, c.benchmark): f"{c.group} {c.name}" for c in [*summary.scores, *summary.columns]}
    lines = [["setting", "against", "", "setting", "against", "difference", "n"]]
    for each in comparisons:
        values = [
            f"{value:.3g}" if each.metric == MEAN else f"{100 * value:.1f}"
            for value in (each.value, each.against_value)
        ]
        name = names[each.judge, each.metric, each.benchmark]
        lines.append([each.setting, each.against, name, *values, _difference(each), str(each.n)])
    return lines


def _difference(comparison: Comparison | None) -> str:
    if comparison is None:
        return MISSING
    scale, digits = (1, ".3g") if comparison.metric == MEAN else (100, ".1f")
    if comparison.low is None or comparison.high is None:
        interval = "no interval"
    else:
        interval = f"{scale * comparison.low:{digits}} to {scale * comparison.high:{digits}}"
    p = "p < .001" if comparison.p_holm < 0.001 else f"p = {comparison.p_holm:.3f}".replace("0.", ".")
    return f"{scale * comparison.difference:+{digits}} [{interval}], {p}"


def _sizes(summary: Summary, columns: Sequence[Column]) -> str:
    """`deberta: i_cona 178, i_malicious 98-100`."""
    sizes: dict[str, dict[str, str]] = {}
    for column in columns:
        counts = sorted({row.n for row in select(summary.rows, column)})
        said = str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
        sizes.setdefault(column.judge, {})["all toxic" if column.benchmark == POOLED else column.benchmark] = said
    return "; ".join(f"{judge}: " + ", ".join(map(" ".join, of.items())) for judge, of in sizes.items())


def _score(rows: list[Measurement]) -> str:
    if not rows:
        return MISSING
    mean, spread = mean_and_spread([row.value for row in rows if row.value is not None])
    if spread is not None:
        return f"{mean:.3g} [±{spread:.2g}]"
    row = rows[0]
    if row.low is None or row.high is None or row.stderr is None:
        return f"{mean:.3g}"
    return f"{mean:.3g} [{row.low:.3g} to {row.high:.3g}], s.e. {row.stderr:.2g}"


def _main_cells(summary: Summary) -> list[list[str]]:
    setting = _setting_names(summary)
    lines = [[*setting, *(f"{column.group} %<br>{column.name}" for column in summary.columns), "unscored"]]
    for line in summary.lines:
        cells = [_markdown_cell(cell) for cell in line.cells]
        lines.append([*_setting(summary, line), *cells, str(line.unscored)])
    return lines


def _markdown_cell(cell: Cell | None) -> str:
    return MISSING if cell is None else f"{cell.main} [{cell.uncertainty}]".replace(" []", "")


def _rich_cell(cell: Cell | None) -> Text:
    if cell is None:
        return Text(MISSING, style="dim")
    return Text.assemble(cell.main, "\n" if cell.uncertainty else "", (cell.uncertainty, "dim"))


def _setting_names(summary: Summary) -> list[str]:
    names = ["loss", "toxic", "λ", "share", "seeds"]
    return [*names[:1], VARIANT, *names[1:]] if _has_variants(summary) else names


def _setting(summary: Summary, line: Line) -> list[str]:
    setting = line.setting
    weight = MISSING if setting.weight is None else f"{setting.weight:.3g}"
    share = MISSING if line.share is None else f"{line.share:.3g}"
    texts = [setting.loss, str(setting.toxic), weight, share, str(line.runs)]
    return [*texts[:1], setting.variant, *texts[1:]] if _has_variants(summary) else texts


def _has_variants(summary: Summary) -> bool:
    return any(line.setting.variant for line in summary.lines)
