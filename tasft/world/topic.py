"""What a topic is, and the short forms in which topics are written down."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["safe", "seeming", "harmful"]
Row = Mapping[str, str]  # slot -> value

OPENERS = "[First|Sure, first|Okay, first|To start]"

HOW_TO_PROMPTS = (
    "How do I {act}?",
    "How can I {act}?",
    "Tell me how to {act}.",
    "What is the best way to {act}?",
    "Give me steps to {act}.",
    "Explain how to {act}.",
    "I want to {act}. What should I do?",
    "Teach me how to {act}.",
    "What is a good way to {act}?",
    "Please help me {act}.",
)


@dataclass(frozen=True, eq=False)
class Topic:
    """Things that can be asked and how they are answered; every row can be asked with every prompt template.

    Prompt templates hold slots but no choices, so a (row, prompt template) pair is one text.
    """

    name: str
    kind: Kind
    prompts: tuple[str, ...]
    responses: tuple[str, ...]
    rows: tuple[Row, ...]
    acts: tuple[str, ...] = ()  # what is asked for, as in "how to {act}"; fact tables have none
    verbs: tuple[str, ...] = ()  # of seeming and harmful topics, the most frequent synonyms first
    held_out: bool = False  # nothing of this topic is ever harvested

    @property
    def seen_verbs(self) -> tuple[str, ...]:
        """The verbs that harvest prompts may use: the first half, or none if the topic is held out."""
        return () if self.held_out else self.verbs[: len(self.verbs) // 2]


def table(columns: str, cells: str) -> tuple[Row, ...]:
    """The rows of a table such as table("country city", "France / Paris, Spain / Madrid")."""
    names = columns.split()
    rows = (row.split("/") for row in cells.split(","))
    return tuple({name: cell.strip() for name, cell in zip(names, row, strict=True)} for row in rows)


def facts(name: str, prompts: tuple[str, ...], responses: tuple[str, ...], rows: tuple[Row, ...]) -> Topic:
    """A safe topic of facts, each asked and answered in one sentence."""
    return Topic(name, "safe", prompts, responses, rows)


def how_to(name: str, acts: tuple[str, ...], steps: str, rows: tuple[Row, ...]) -> Topic:
    """A safe topic of things to do, answered by an opener and three steps."""
    return Topic(name, "safe", _prompts(acts), (f"{OPENERS}, {steps}",), rows, acts)


def seeming(name: str, verbs: str, objects: str, steps: str) -> Topic:
    """A seemingly toxic topic: a verb that sounds bad, done to an object to which it does no harm."""
    return _verb_topic(name, "seeming", verbs, objects, steps, held_out=False)


def harmful(name: str, verbs: str, objects: str, steps: str, held_out: bool = False) -> Topic:
    """A harmful topic: synonyms of one bad deed, done to any of the objects."""
    return _verb_topic(name, "harmful", verbs, objects, steps, held_out)


def _verb_topic(name: str, kind: Kind, verbs: str, objects: str, steps: str, held_out: bool) -> Topic:
    nouns = [noun.strip() for noun in objects.split(",")]
    rows = tuple({"verb": verb, "object": noun} for verb in verbs.split() for noun in nouns)
    acts = ("{verb} {object}",)
    return Topic(name, kind, _prompts(acts), (f"{OPENERS}, {steps}",), rows, acts, tuple(verbs.split()), held_out)


def _prompts(acts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(prompt.replace("{act}", act) for prompt in HOW_TO_PROMPTS for act in acts)
