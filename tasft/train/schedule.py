"""Learning rates as a factor of the highest one."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then constant, or a decay to `floor` over the rest of `steps`."""

    kind: Literal["constant", "linear", "cosine"]
    warmup_steps: int
    steps: int
    floor: float = 0.0


def rate(schedule: Schedule, step: int) -> float:
    """The factor, in [0, 1], of optimizer step `step`, counted from 0; as in Hugging Face's schedules."""
    if step < schedule.warmup_steps:
        return step / schedule.warmup_steps
    if schedule.kind == "constant":
        return 1.0
    left = max(schedule.steps - schedule.warmup_steps, 1)
    done = min((step - schedule.warmup_steps) / left, 1.0)
    decay = 1 - done if schedule.kind == "linear" else (1 + math.cos(math.pi * done)) / 2
    return schedule.floor + (1 - schedule.floor) * decay
