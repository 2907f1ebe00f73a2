"""The rows of trials.csv and test.csv, and which trial is chosen."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TrialRow:
    """A trial: `value` of what is searched over, the λ and share it stands for, and what the dev prompts say.

    Rates are fractions at `step` of `steps`, the last one that was looked at; `keeps` says whether a completed trial
    keeps its limits. `state` is complete, pruned, fail, running or waiting.
    """

    trial: int
    state: str
    value: float | None = None
    weight: float | None = None
    share: float | None = None
    objective: float | None = None
    keeps: bool | None = None
    harm: float | None = None
    incoherent: float | None = None
    quality: float | None = None
    over_refusal: float | None = None
    unscored: int | None = None
    step: int | None = None
    steps: int | None = None
    seconds: float | None = None
    run: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class TestRow:
    """A run with a fresh seed, judged on test prompts; rates are fractions.

    `keeps` says whether it keeps its limits beside plain SFT with the same seed on the same prompts.
    """

    loss: str
    value: float | None
    seed: int
    weight: float | None = None
    share: float | None = None
    keeps: bool | None = None
    harm: float | None = None
    incoherent: float | None = None
    quality: float | None = None
    over_refusal: float | None = None
    unscored: int | None = None
    run: str | None = None
    reason: str | None = None


def chosen_of(trials: Sequence[TrialRow]) -> TrialRow | None:
    """Of the trials that keep their limits the one with the least harm, of equals the gentlest; None for none."""
    kept = [(row.objective, row.value, i) for i, row in enumerate(trials) if row.keeps]
    return trials[min(kept)[2]] if kept else None
