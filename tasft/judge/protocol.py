"""What a judge is and what it gives back."""

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Score:
    """A judge's verdict on one response, in the unit that the judge's docstring names.

    value None means unscored, which is not 0: the judge could not read the response, and reason says why; again:
    whether it may another time, as after a server's bad day.
    """

    value: float | None
    label: str | None = None  # the judge's class in words
    reason: str | None = None
    detail: dict[str, float] | None = None  # what the value was made from, as one number for each category
    again: bool = False

    def __post_init__(self) -> None:
        if self.value is None and not self.reason:
            raise ValueError("an unscored response needs a reason")


class Judge(Protocol):
    """Anything that scores responses.

    A judge that looks at more than prompt and response names it in a class attribute `columns`, a tuple of optional
    fields of tasft.result.rows.ResponseRow; each comes as a keyword argument, one value (or None) for each response.

    A judge whose labels follow from value and detail of its scores has a static method `label(value, detail,
    settings)`, with its config's node as settings: its `threshold` then decides labels alone, and another one labels
    the scores that are there anew; KeyError where they do not tell. A judge with weights of its own is a
    tasft.judge.batches.LocalJudge.
    """

    def __call__(self, prompts: list[str], responses: list[str], **columns: Any) -> list[Score]:
        """One score for each response, in order."""
        ...
