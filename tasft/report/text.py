"""The main table as a rich table and as markdown: the same numbers twice."""

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from tasft.report.summary import Cell, Line, Summary

MISSING = "-"  # not measured, which is not 0


def rich_table(summary: Summary) -> RichTable:
    """The table for a terminal; intervals stand below their rates, so that a dozen columns fit."""
    title = Text.assemble((summary.model, "bold"), ": per cent of scored answers")
    table = RichTable(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, name in enumerate(_setting_names(summary)):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for column in summary.columns:
        name = column.name.replace("_", "_\n") if len(column.name) > 9 else column.name.replace(" ", "\n")
        table.add_column(
            Text.assemble((column.group.replace("incoh", "inco-\nh"), "bold"), "\n", (name, "not bold")),
            justify="right",
            no_wrap=True,
        )
    table.add_column("un-\nscored", justify="right")
    for line, following in zip(summary.lines, [*summary.lines[1:], None], strict=True):
        cells = [_rich_cell(cell) for cell in line.cells]
        ends = following is not None and following.setting.loss != line.setting.loss
        table.add_row(*map(Text, _setting(summary, line)), *cells, Text(str(line.unscored)), end_section=ends)
    return table


def markdown(summaries: list[Summary], runs: list[str]) -> str:
    """The tables of all models, each between its name and its notes; `runs` says what was left out."""
    parts = ["# Results", *runs]
    for summary in summaries:
        parts.append(f"## {summary.model}")
        if summary.columns:
            parts.append("\n".join(_markdown_lines(summary)))
        parts += summary.notes
    return "\n\n".join(parts) + "\n"


def _markdown_lines(summary: Summary) -> list[str]:
    setting = _setting_names(summary)
    names = [*setting, *(f"{column.group} %<br>{column.name}" for column in summary.columns), "unscored"]
    lines = [names, [":--", *["--:"] * (len(names) - 1)]]
    for line in summary.lines:
        cells = [
            MISSING if cell is None else f"{cell.main} [{cell.uncertainty}]".replace(" []", "") for cell in line.cells
        ]
        lines.append([*_setting(summary, line), *cells, str(line.unscored)])
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _rich_cell(cell: Cell | None) -> Text:
    if cell is None:
        return Text(MISSING, style="dim")
    return Text.assemble(cell.main, "\n" if cell.uncertainty else "", (cell.uncertainty, "dim"))


def _setting_names(summary: Summary) -> list[str]:
    names = ["loss", "toxic", "λ", "share", "seeds"]
    return [*names[:1], "differs in", *names[1:]] if _has_variants(summary) else names


def _setting(summary: Summary, line: Line) -> list[str]:
    setting = line.setting
    weight = MISSING if setting.weight is None else f"{setting.weight:.3g}"
    share = MISSING if line.share is None else f"{line.share:.3g}"
    texts = [setting.loss, str(setting.toxic), weight, share, str(line.runs)]
    return [*texts[:1], setting.variant, *texts[1:]] if _has_variants(summary) else texts


def _has_variants(summary: Summary) -> bool:
    return any(line.setting.variant for line in summary.lines)
