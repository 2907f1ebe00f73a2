"""`python -m tasft.report outputs`: table and figures of the finished runs under a folder. Imports no torch.

Everything comes from the runs' configs and scores: nothing is generated or judged.
"""

import argparse
import sys
from pathlib import Path

from tasft.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Print the tables, write them and the figures; the exit code. Mistakes end in one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m tasft.report", description="Table and figures of finished runs.")
    parser.add_argument("outputs", type=Path, help="folder that holds the runs")
    parser.add_argument("--out", type=Path, help="where to write (default: <outputs>/report)")
    parser.add_argument(
        "--compare",
        nargs=2,
        action="append",
        metavar=("SETTING", "AGAINST"),
        help="two settings by their first columns in the table, as 'emd 50' 'nlcl 50'; may be given several times"
        " (default: every setting against plain SFT)",
    )
    parser.add_argument(
        "--harm", metavar="JUDGE", help="judge of harm, where it has judged (default: each run's first)"
    )
    parser.add_argument(
        "--only", metavar="TABLE", help="a table of the paper, as table2, alone with what it is made of"
    )
    given = parser.parse_args(argv)
    # What plots and computes takes a second or two to import: --help and typing errors need none of it.
    from tasft.report.write import report

    try:
        report(
            given.outputs,
            given.out or given.outputs / "report",
            [tuple(pair) for pair in given.compare or []],
            given.harm,
            given.only,
        )
    except UserError as error:
        sys.stderr.write(f"tasft: {error}\n")
        return 1
    return 0
