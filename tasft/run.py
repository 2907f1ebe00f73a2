"""One run, or with -m a grid of runs: python -m tasft.run model=mistral7b loss=nlcl data.toxic=300."""

import sys

from tasft.cell import run_cell
from tasft.config import entry


def main() -> int:
    """Run the command line; the exit code."""
    return entry(run_cell, "run")


if __name__ == "__main__":
    sys.exit(main())
