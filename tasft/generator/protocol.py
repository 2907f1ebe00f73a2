"""What a generator is and what it gives back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tasft.remote import Message


@dataclass(frozen=True)
class Generated:
    """What a generator said, as it said it; text None: nothing, and `reason` says why. It can be asked again."""

    text: str | None
    reason: str | None = None

    def __post_init__(self) -> None:
        if self.text is None and not self.reason:
            raise ValueError("a missing reply needs a reason")


class Generator(Protocol):
    """Anything that writes prompts with a word in them, and answers prompts.

    It is made with `node`, its name in the config, for messages.
    """

    name: str  # who it is, for the rows it made
    identity: str  # all that decides what it says
    batch_size: int | None  # asked at once; None: any number, and it forgets nothing that it has answered

    def check(self) -> None:
        """UserError for what would stop it later: a key, a folder."""
        ...

    def write(self, words: Sequence[str], count: int) -> list[Generated]:
        """For each word a reply that lists `count` harmless prompts with the word in them."""
        ...

    def answer(self, prompts: Sequence[str]) -> list[Generated]:
        """An answer to each prompt, in order."""
        ...


class Chatting(Generator, Protocol):
    """A generator that can go on with a conversation, for attacks that learn from answers."""

    def reply(
        self, conversations: Sequence[Sequence[Message]], draws: Sequence[int], opening: str = "", end: str = ""
    ) -> list[Generated]:
        """What it says next in each conversation, in order.

        draws: a number for each: the same conversation with another number may get another reply. opening, end: how
        a reply begins and the text with which it is over, where the model can be made to; the reply holds both.
        """
        ...
