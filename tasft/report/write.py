"""What `python -m tasft.report` does: read, write, print, and say what was written."""

import shlex
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tasft.report.figures import draw_harm_against_over_refusal, draw_harm_against_toxic
from tasft.report.summary import Summary, summaries
from tasft.report.text import markdown, rich_table
from tasft.result.rows import write_atomically
from tasft.result.store import check_writable
from tasft.result.table import Table, as_csv, read_table

WIDTH = 140  # columns, where the output is no terminal
NAMED = 5  # runs named in one line


def report(root: Path, out: Path) -> None:
    """Print the tables of the runs under `root`; write results.csv, table.md and the figures to `out`."""
    table = read_table(root)
    check_writable(out)
    tables = summaries(table.rows)
    left_out = _left_out(table)
    write_atomically(out / "results.csv", as_csv(table.rows))
    write_atomically(out / "table.md", markdown(tables, left_out))
    drawn = [drawing for summary in tables for drawing in _draw(summary, out, several=len(tables) > 1)]

    # Printed last, so that the files are there even where the reader of a pipe has gone.
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    for summary in tables:
        console.print(rich_table(summary) if summary.columns else Text(summary.model, style="bold"))
        for note in summary.notes:
            console.print(Text(note, style="dim"))
        console.print()
    not_drawn = [f"{path.name} not drawn: {missing}" for path, missing in drawn if missing]
    written = [out / "results.csv", out / "table.md", *(path for path, missing in drawn if not missing)]
    for line in [*left_out, *not_drawn, *(f"wrote {shlex.quote(str(path))}" for path in written)]:
        console.print(Text(line), soft_wrap=True)


def _draw(summary: Summary, out: Path, several: bool) -> list[tuple[Path, str]]:
    """Draw both figures of a model; each path with why it is missing, "" where it is not."""
    word = "harm" if summary.harm_judged else "refusals"
    suffix = f".{summary.model}" if several else ""
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
