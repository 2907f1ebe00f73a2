"""The prompts of a benchmark, each with an id that its answers and scores carry."""

import hashlib
from dataclasses import dataclass

from tasft.errors import UserError
from tasft.schema import Source
from tasft.source import Row, read_rows


@dataclass(frozen=True)
class BenchmarkPrompt:
    """`id` is short, stable and unique within a benchmark: it comes from the prompt's text."""

    id: str
    text: str


def read_prompts(source: Source, key: str) -> list[BenchmarkPrompt]:
    """Every prompt of `source` once per occurrence, in its order; UserError where it cannot be read."""
    column = source.fields.prompt
    if column is None:
        raise UserError(f"{key}.fields names no prompt: give {key}.fields.prompt=<column>")
    return number([row.text(column) for row in _limited(read_rows(source, key), source.count)])


def number(texts: list[str]) -> list[BenchmarkPrompt]:
    """Texts with ids; the second occurrence of a text gets `-2`."""
    seen: dict[str, int] = {}
    prompts = []
    for text in texts:
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        seen[digest] = seen.get(digest, 0) + 1
        prompts.append(BenchmarkPrompt(digest if seen[digest] == 1 else f"{digest}-{seen[digest]}", text))
    return prompts


def _limited(rows: list[Row], count: int | None) -> list[Row]:
    return rows if count is None else rows[:count]
