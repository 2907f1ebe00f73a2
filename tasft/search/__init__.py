"""A search over λ: python -m tasft.search experiment=search_tiny loss=nlcl."""

from tasft.config import entry


def main() -> int:
    """Run the command line; the exit code."""
    from tasft.search.command import search

    return entry(search, "search")
