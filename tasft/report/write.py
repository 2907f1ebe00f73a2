"""What `python -m tasft.report` does: read, write, print, and say what was written."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tasft.errors import UserError
from tasft.report.compare import NOTE, Comparison, compare
from tasft.report.cost import Cost, costs
from tasft.report.curves import draw_curves
from tasft.report.figures import draw_harm_against_over_refusal, draw_harm_against_toxic
from tasft.report.page import write_page
from tasft.report.paper import Beside, paper_markdown, restricted, sheet_lines, sheet_notes, sheets
from tasft.report.paper_figures import draw_paper_figures
from tasft.report.settings import OfSetting, by_setting
from tasft.report.summary import Summary, summaries
from tasft.report.text import comparison_lines, further, markdown, rich_further, rich_tables
from tasft.result.rows import write_atomically
from tasft.result.store import check_writable
from tasft.result.table import Table, as_csv, read_table

WIDTH = 140  # columns, where the output is no terminal
NAMED = 5  # runs named in one line


def report(
    root: Path,
    out: Path,
    asked: Sequence[tuple[str, str]] = (),
    harm: str | None = None,
    only: str | None = None,
) -> None:
    """Print the tables of the runs under `root`; write them, the figures and the page of all runs to `out`.

    asked: pairs of settings to compare, by their names in the table; without any, each with plain SFT. harm: the judge
    of harm, where it has judged, instead of each run's first. only: a table of the paper, with what it is made of.
    """
    table = read_table(root, harm)
    beside = sheets(table)
    if only is not None:
        there = ", ".join(dict.fromkeys(sheet.name for sheet in beside)) or "none of the paper's"
        beside = [sheet for sheet in beside if sheet.name == only]
        if not beside:
            raise UserError(f"--only {only}: these runs make no such table; there are {there}")
        table = restricted(table, beside)
    check_writable(out)
    tables = summaries(table)
    comparisons, not_compared = compare(table, tables, asked)
    left_out = _left_out(table)
    write_atomically(out / "results.csv", as_csv(table.rows))
    write_atomically(out / "settings.csv", as_csv(by_setting(tables), OfSetting))
    spent = costs(root, table.rows)
    of_paper = paper_markdown(beside)
    write_atomically(out / "table.md", of_paper + markdown(tables, left_out, comparisons, not_compared, spent))
    written = [out / "results.csv", out / "settings.csv", out / "table.md"]
    if beside:
        write_atomically(out / "paper.csv", as_csv([cell for sheet in beside for cell in sheet.cells], Beside))
        written.append(out / "paper.csv")
    else:
        (out / "paper.csv").unlink(missing_ok=True)
    if comparisons:
        write_atomically(out / "comparisons.csv", as_csv(comparisons, Comparison))
        written.append(out / "comparisons.csv")
    else:
        (out / "comparisons.csv").unlink(missing_ok=True)  # of an earlier report on other runs
    if any(each.hours is not None for each in spent):
        write_atomically(out / "costs.csv", as_csv(spent, Cost))
        written.append(out / "costs.csv")
    drawn = [drawing for summary in tables for drawing in _draw(summary, out, several=len(tables) > 1)]
    drawn += draw_paper_figures(table, out) + draw_curves(root, table, out)
    write_page(root, table, tables, out / "index.html", [*left_out, *not_compared])
    written.append(out / "index.html")

    # Printed last, so that the files are there even where the reader of a pipe has gone.
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    for sheet in beside:
        console.print(rich_further(sheet.form.title, sheet_lines(sheet)))
        for note in sheet_notes(sheet):
            console.print(Text(note, style="dim"))
        console.print()
    for summary in tables:
        blocks, narrow = rich_tables(summary, console.width)
        for block in blocks if summary.columns else [Text(summary.model, style="bold")]:
            console.print(block)
        for note in [narrow, *summary.notes] if narrow else summary.notes:
            console.print(Text(note, style="dim"))
        console.print()
        for each in further(summary, spent, short=True):
            console.print(rich_further(each.title, each.lines))
            for note in each.notes:
                console.print(Text(note, style="dim"))
            console.print()
        of_model = [each for each in comparisons if each.model == summary.model]
        if asked and of_model:
            console.print(rich_further("compared", comparison_lines(of_model, summary)))
            console.print(Text(NOTE, style="dim"))
            console.print()
    not_drawn = [f"{path.name} not drawn: {missing}" for path, missing in drawn if missing]
    written += [path for path, missing in drawn if not missing]
    for line in [*left_out, *not_compared, *not_drawn, *(f"wrote {shlex.quote(str(path))}" for path in written)]:
        console.print(Text(line), soft_wrap=True)


def _draw(summary: Summary, out: Path, several: bool) -> list[tuple[Path, str]]:
    """Draw both figures of a model; each path with why it is missing, "" where it is not."""
    word = "harm" if summary.harm_judged else "refusals"
    suffix = f".{summary.model.replace(' ', '-')}" if several else ""
    drawings = {
        f"{word}-by-toxic{suffix}.png": draw_harm_against_toxic,
        f"{word}-by-over-refusal{suffix}.png": draw_harm_against_over_refusal,
    }
    return [(out / name, draw(summary, out / name)) for name, draw in drawings.items()]


def _left_out(table: Table) -> list[str]:
    """One line for each reason that runs do not stand in the table."""
    lines = []
    if table.unfinished:
        lines.append(f"Left out, unfinished: {_names(table.unfinished)}.")
    if table.unjudged:
        lines.append(f"Left out, finished but without scores: {_names(table.unjudged)}.")
    return lines


def _names(runs: list[str]) -> str:
    more = f" and {len(runs) - NAMED} more" if len(runs) > NAMED else ""
    noun = "run" if len(runs) == 1 else "runs"
    return f"{len(runs)} {noun} ({', '.join(runs[:NAMED])}{more})"
