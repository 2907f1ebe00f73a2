"""Which rows a run trains on: nested subsets, the same for every loss and every toxic count of a seed."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tasft.data.example import Example, Rejected, example
from tasft.data.tokenize import Tokenized
from tasft.errors import UserError
from tasft.schema import Fields
from tasft.source import Row


@dataclass(frozen=True)
class Chosen:
    """The first `count` usable rows of one seeded order, and what was passed over on the way."""

    examples: list[Example]
    tokens: list[Tokenized]
    rejected: list[Rejected] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits of what the examples say, wherever they come from."""
        texts = [(e.prompt, e.input, e.history, e.response) for e in self.examples]
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def choose(
    rows: Sequence[Row],
    fields: Fields,
    toxic: bool,
    count: int,
    seed: int,
    encode: Callable[[Example], Tokenized | Rejected],
    key: str,
) -> Chosen:
    """`count` usable rows: those for a smaller count are the first of those for a larger one.

    Toxic rows enter once per prompt. Raises UserError where there are too few; `key` is the count's name in the config.
    """
    chosen = Chosen([], [])
    seen: set[tuple[object, ...]] = set()
    order = list(range(len(rows)))
    random.Random(f"{seed} {'toxic' if toxic else 'safe'}").shuffle(order)
    for index in order if count else []:
        made: Example | Rejected = example(rows[index], fields, toxic)
        if isinstance(made, Example):
            same = (made.prompt, made.input, made.history)
            tokens = Rejected(made.source, "duplicate prompt") if toxic and same in seen else encode(made)
            seen.add(same)
            if isinstance(tokens, Tokenized):
                chosen.examples.append(made)
                chosen.tokens.append(tokens)
                if len(chosen.tokens) == count:
                    break
                continue
            made = tokens
        chosen.rejected.append(made)
    if len(chosen.tokens) < count:
        place = rows[0].place.rsplit(" ", 2)[0]
        raise UserError(
            f"{key}={count}, but {place} has only {len(chosen.tokens)} usable rows"
            f"{summary(chosen.rejected, ' (rejected: ', ')')}: ask for fewer or add rows"
        )
    return chosen


def summary(rejected: Sequence[Rejected], before: str = "", after: str = "") -> str:
    """`3 duplicate, 2 empty response (first: pairs.jsonl line 7)`; empty where nothing was rejected."""
    if not rejected:
        return ""
    counts = Counter(_kind(r.reason) for r in rejected)
    parts = []
    for reason, count in counts.most_common():
        first = next(r.source for r in rejected if _kind(r.reason) == reason)
        parts.append(f"{count} {reason} (first: {first})")
    return before + ", ".join(parts) + after


def _kind(reason: str) -> str:
    """The reason without what differs from row to row."""
    return "prompt longer than data.max_length" if "data.max_length" in reason else reason
