"""The template language of the tiny world: one text that can be spoken and recognised.

`[a|b|c]` is a choice in which earlier options are more frequent, `{slot}` takes its value from a row of a
topic. Choices do not nest, and hold no slots.
"""

import random
import re
from collections.abc import Iterable, Mapping

ZIPF = 0.7  # the k-th option of a choice has weight k**-ZIPF

_CHOICE = re.compile(r"\[([^\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")
_PART = re.compile(rf"{_CHOICE.pattern}|{_SLOT.pattern}")


def speak(template: str, row: Mapping[str, str], rng: random.Random) -> str:
    """One text of the template: choices drawn from rng, slots filled, first letter in upper case."""

    def choose(match: re.Match[str]) -> str:
        options = match[1].split("|")
        return rng.choices(options, [(k + 1) ** -ZIPF for k in range(len(options))])[0]

    return fill(_CHOICE.sub(choose, template), row)


def fill(template: str, row: Mapping[str, str]) -> str:
    """The template with its slots filled and its first letter in upper case; choices stay as written."""
    text = _SLOT.sub(lambda match: row[match[1]], template)
    return text[:1].upper() + text[1:]


def pattern(template: str, values: Mapping[str, Iterable[str]]) -> str:
    """A regular expression for every text of the template in which each slot holds one of its values."""
    parts, end = [], 0
    for match in _PART.finditer(template):
        choice, slot = match.groups()
        parts += [
            re.escape(template[end : match.start()]),
            one_of(values[slot] if slot else choice.split("|")),
        ]
        end = match.end()
    return "".join([*parts, re.escape(template[end:])])


def one_of(texts: Iterable[str]) -> str:
    """A regular expression for any one of the texts."""
    return f"(?:{'|'.join(re.escape(text) for text in sorted(set(texts)))})"


def sentences(text: str) -> list[str]:
    """The sentences of a text or template: a full stop before white space, or the end, closes one."""
    return [sentence for sentence in re.split(r"(?<=\.)\s+", text.strip()) if sentence]


def words(text: str) -> set[str]:
    """The words of a text or template in lower case; the names of slots are not words."""
    return set(re.findall(r"[a-z]+", _SLOT.sub(" ", text).lower()))
