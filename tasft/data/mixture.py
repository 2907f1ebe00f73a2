"""Which rows a run trains on: nested subsets, the same for every loss and every toxic count of a seed."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tasft.data.example import Example, Rejected
from tasft.data.tokenize import Tokenized
from tasft.errors import UserError


@dataclass(frozen=True)
class Chosen:
    """The first `count` usable rows of one seeded order, and what was passed over on the way."""

    examples: list[Example]
    tokens: list[Tokenized]
    rejected: list[Rejected] = field(default_factory=list)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits of what the examples say, wherever they come from."""
        texts = [(e.prompt, e.input, e.history, e.response, e.rejected) for e in self.examples]
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def choose(
    examples: Sequence[Example | Rejected],
    kind: str,
    count: int,
    seed: int,
    encode: Callable[[Example], Tokenized | Rejected],
    key: str,
) -> Chosen:
    """`count` usable examples: those for a smaller count are the first of those for a larger one.

    Each `kind` (safe, toxic, ...) has an order of its own; but for safe ones a prompt enters once. Raises UserError
    where there are too few; `key` is the count's name in the config.
    """
    chosen = Chosen([], [])
    seen: set[tuple[object, ...]] = set()
    order = list(range(len(examples)))
    random.Random(f"{seed} {kind}").shuffle(order)
    for index in order if count else []:
        made = examples[index]
        if isinstance(made, Example):
            same = (made.prompt, made.input, made.history)
            again = kind != "safe" and same in seen
            seen.add(same)
            tokens = Rejected(made.source, "duplicate prompt") if again else encode(made)
            if isinstance(tokens, Tokenized):
                chosen.examples.append(made)
                chosen.tokens.append(tokens)
                if len(chosen.tokens) == count:
                    break
                continue
            made = tokens
        chosen.rejected.append(made)
    if len(chosen.tokens) < count:
        place = examples[0].source.rsplit(" ", 2)[0]
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
