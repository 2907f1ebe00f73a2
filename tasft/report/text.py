"""The tables as rich tables and as markdown: the same numbers twice."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from tasft.report.compare import NOTE, Comparison, by_pair
from tasft.report.cost import Cost, cost_section
from tasft.report.further import Section, attacks, begun, by_judge, labels, scores
from tasft.report.summary import MISSING, VARIANT, Cell, Column, Summary, setting_names, setting_words
from tasft.result.table import MEAN, POOLED


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
    for name in setting_names(summary):
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
        table.add_row(*map(Text, setting_words(summary, line)), *cells, Text(str(line.unscored)), end_section=ends)
    return table


def rich_further(title: str, lines: Sequence[Sequence[str]]) -> RichTable:
    """Another table for a terminal, from its cells, the header first."""
    table = RichTable(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, name in enumerate(lines[0]):
        table.add_column(Text(name.replace("<br>", "\n")), justify="right" if number else "left")
    for line in lines[1:]:
        table.add_row(*map(Text, line))
    return table


def markdown(
    summaries: Sequence[Summary],
    runs: Sequence[str],
    comparisons: Sequence[Comparison] = (),
    not_compared: Sequence[str] = (),
    spent: Sequence[Cost] = (),
) -> str:
    """The tables of all models, each between its name and its notes; `runs` says what was left out."""
    parts = ["# Results", *runs]
    for summary in summaries:
        parts.append(f"## {summary.model}")
        if summary.columns:
            parts.append(as_markdown(_main_cells(summary)))
        parts += summary.notes
        for each in further(summary, spent):
            parts += [f"### {each.title}", as_markdown(each.lines), *each.notes]
        of_model = [each for each in comparisons if each.model == summary.model]
        if of_model:
            parts += ["### Compared", as_markdown(comparison_cells(of_model, summary)), NOTE, *not_compared]
    return "\n\n".join(parts) + "\n"


def further(summary: Summary, spent: Sequence[Cost], short: bool = False) -> list[Section]:
    """The tables beside the main one, of which there is anything; `short`: for a terminal, without the widest."""
    words = [] if short else [*by_judge(summary), *labels(summary)]
    return [*words, *scores(summary), *attacks(summary), *begun(summary), *cost_section(summary, spent)]


def as_markdown(lines: Sequence[Sequence[str]]) -> str:
    """Cells, the header first, as a markdown table."""
    ruled = [lines[0], [":--", *["--:"] * (len(lines[0]) - 1)], *lines[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in ruled)


def comparison_cells(comparisons: Sequence[Comparison], summary: Summary) -> list[list[str]]:
    """One line for each pair of settings, a column for each rate, a header first."""
    columns = list(dict.fromkeys((each.judge, each.metric, each.benchmark) for each in comparisons))
    names = {(c.judge, c.metric, c.benchmark): f"{c.group}<br>{c.name}" for c in [*summary.scores, *summary.columns]}
    lines = [["setting", "against", *(names[column] for column in columns)]]
    for (setting, against), of_pair in by_pair(comparisons).items():
        found = {(each.judge, each.metric, each.benchmark): each for each in of_pair}
        lines.append([setting, against, *(_compared(found.get(column)) for column in columns)])
    return lines


def comparison_lines(comparisons: Sequence[Comparison], summary: Summary) -> list[list[str]]:
    """One line for each comparison, a header first: for a terminal."""
    names = {(c.judge, c.metric, c.benchmark): f"{c.group} {c.name}" for c in [*summary.scores, *summary.columns]}
    lines = [["setting", "against", "", "setting", "against", "difference", "n", "left out"]]
    for each in comparisons:
        values = [
            f"{value:.3g}" if each.metric == MEAN else f"{100 * value:.1f}"
            for value in (each.value, each.against_value)
        ]
        name = names[each.judge, each.metric, each.benchmark]
        lines.append([each.setting, each.against, name, *values, _difference(each), str(each.n), str(each.left_out)])
    return lines


def _compared(comparison: Comparison | None) -> str:
    """`-66.7 [-86.2 to -34.9], p = .016, n 12, 1 left out`."""
    if comparison is None:
        return MISSING
    left_out = f", {comparison.left_out} left out" if comparison.left_out else ""
    return f"{_difference(comparison)}, n {comparison.n}{left_out}"


def _difference(comparison: Comparison) -> str:
    scale, digits = (1, ".3g") if comparison.metric == MEAN else (100, ".1f")
    if comparison.low is None or comparison.high is None:
        interval = "no interval"
    else:
        interval = f"{scale * comparison.low:{digits}} to {scale * comparison.high:{digits}}"
    p = "p < .001" if comparison.p_holm < 0.001 else f"p = {comparison.p_holm:.3f}".replace("0.", ".")
    return f"{scale * comparison.difference:+{digits}} [{interval}], {p}"


def _main_cells(summary: Summary) -> list[list[str]]:
    setting = setting_names(summary)
    lines = [[*setting, *(f"{column.group} %<br>{column.name}" for column in summary.columns), "unscored"]]
    for line in summary.lines:
        cells = [_markdown_cell(cell) for cell in line.cells]
        lines.append([*setting_words(summary, line), *cells, str(line.unscored)])
    return lines


def _markdown_cell(cell: Cell | None) -> str:
    return MISSING if cell is None else cell.text


def _rich_cell(cell: Cell | None) -> Text:
    if cell is None:
        return Text(MISSING, style="dim")
    return Text.assemble(cell.main, "\n" if cell.interval else "", (cell.interval, "dim"))
