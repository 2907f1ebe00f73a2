"""The paper's numbers as data: a csv for each of its tables and figures, a line for each cell or curve.

Columns: `model` and `benchmark` by our names; `method` is a loss, or stl, plain SFT with safe answers to toxic
prompts; `count` its toxic rows, or safe answers; `metric` with its unit (`harmful` is a number of answers); `value`;
`source`, the paper or the authors' poster, which has Tables 1 to 3 legibly. A value is `not available` where neither
shows it clearly. Imports nothing slow.
"""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
NOT_AVAILABLE = "not available"
TABLES = tuple(sorted(file.stem for file in FOLDER.glob("*.csv")))  # table1, ..., figure2, ...


@dataclass(frozen=True)
class Published:
    """One cell of a table of the paper; `value` is None where our copy does not show it."""

    model: str
    method: str
    count: int
    benchmark: str  # "" where the table is of none
    metric: str
    value: float | None
    source: str


@cache
def published(table: str) -> tuple[Published, ...]:
    """The cells of `table2` and so on, in the paper's order."""
    with (FOLDER / f"{table}.csv").open(encoding="utf-8", newline="") as file:
        return tuple(
            Published(
                row["model"], row["method"], int(row["count"]), row["benchmark"], row["metric"],
                None if row["value"] == NOT_AVAILABLE else float(row["value"]), row["source"],
            )
            for row in csv.DictReader(file)
        )  # fmt: skip
