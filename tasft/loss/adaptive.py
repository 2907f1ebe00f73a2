"""λ without a grid: a PI controller in log λ brings the toxic answers down, on a straight course, to a target.

What is measured is the fall of a toxic answer, log Q_base(y|x) - log Q(y|x) summed over it, in nats: 0 before training,
and e^-fall times as likely after it. (The mean log-prob of its tokens says little: one token decides whether an answer
is given, the others follow from it, and how likely those are differs from row to row.) The whole training meets K toxic
answers; with k of them behind it,

    e = exponential mean of k / K - fall / target over the answers met       error, > 0 where the fall is behind
    r = 1 - (exponential mean of safe loss / plain SFT's - 1) / tolerance    room, 0 where the safe loss is at its limit
    u = min(e, r)                                                            the safe loss overrides the target
    log λ = log λ_start + gain u + integral I,    I = sum of u n / K         over steps that met n answers

all within bounds: I stands still where it would push λ further past its own. Steps without toxic rows move r alone, so
nothing winds up between two toxic rows, and the n / K add up to 1 whatever their number. Textbook PI control with an
override: Åström and Hägglund, Advanced PID Control (2006).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tasft.errors import UserError

WINDOW = 0.15  # of the training, over which safe losses are averaged: a single step's are too noisy to compare


@dataclass(frozen=True)
class Goal:
    """What λ is set for, and how it is set."""

    target: float  # nats by which the log-prob of a toxic answer falls
    tolerance: (
        float | None
    )  # how far, in proportion, the safe loss may rise above plain SFT's; None: as far as it likes
    gain: float
    integral: float
    smoothing: float  # answers over which the error is averaged, >= 1
    range: float  # λ stays within start / range and start * range, >= 1


@dataclass
class _State:
    met: float = 0.0  # answers so far, k
    error: float = 0.0  # e
    excess: float = 0.0  # exponential mean of safe loss / plain SFT's - 1
    integral: float = 0.0  # I


class Adaptive:
    """λ of the next step, from what the steps before it measured: sums over whole step batches, so the same however
    they are cut up."""

    def __init__(
        self,
        goal: Goal,
        start: float,
        reference: Callable[[float], float] | None,  # share of the training -> plain SFT's safe loss
        steps: int,
        answers: int,
    ) -> None:
        """`answers` is K: toxic rows times epochs. ValueError where there is none, or λ would start at 0."""
        if start <= 0 or answers <= 0 or (goal.tolerance is not None and reference is None):
            raise ValueError("λ needs a start above 0, toxic answers, and for a tolerance plain SFT's safe loss")
        self.goal, self.start, self.reference = goal, start, reference
        self.steps, self.answers = steps, answers
        self._state = _State()

    @property
    def weight(self) -> float:
        """λ of the next step."""
        return self.start * math.exp(max(-self._limit, min(self._push, self._limit)))

    def update(self, fall: float, answers: int, safe_loss: float, step: int) -> None:
        """Take in step `step`, counted from 0: the summed fall of its toxic answers, nats, and their number."""
        state, goal = self._state, self.goal
        if self.reference is not None:
            excess = safe_loss / self.reference((step + 1) / self.steps) - 1
            state.excess += (excess - state.excess) / max(1.0, WINDOW * self.steps)
        if not answers:
            return
        error = _clipped(state.met / self.answers - fall / answers / goal.target)
        state.error += (error - state.error) * (1 - (1 - 1 / goal.smoothing) ** answers)
        state.met += answers
        drive = self._drive
        if abs(self._push) < self._limit or drive * self._push < 0:
            state.integral += drive * answers / self.answers

    def state(self) -> dict[str, float]:
        """All that the past has left, for a checkpoint."""
        return asdict(self._state)

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from what `state` gave."""
        self._state = _State(**state)

    @property
    def _drive(self) -> float:
        """u, in [-1, 1]."""
        if self.goal.tolerance is None:
            return self._state.error
        return min(self._state.error, _clipped(1 - self._state.excess / self.goal.tolerance))

    @property
    def _push(self) -> float:
        """log of λ / λ_start, before the bounds."""
        return self.goal.gain * self._drive + self.goal.integral * self._state.integral

    @property
    def _limit(self) -> float:
        return math.log(self.goal.range)


def reference_curve(metrics: Sequence[Mapping[str, Any]]) -> Callable[[float], float]:
    """Plain SFT's safe loss at a share of its training, from its metrics: the mean within WINDOW around that share.

    Where no step was logged so near, it is that of the nearest. UserError where there are no safe losses.
    """
    known = [(int(row["step"]), row.get("safe_loss")) for row in metrics]
    last = max((step for step, _ in known), default=0)
    points = [(step / last, float(loss)) for step, loss in known if loss is not None]
    if not points:
        raise UserError("the metrics of plain SFT hold no safe loss: run loss=sft again with resume=false")

    def curve(share: float) -> float:
        near = [loss for at, loss in points if abs(at - share) <= WINDOW / 2]
        return sum(near) / len(near) if near else min(points, key=lambda point: abs(point[0] - share))[1]

    return curve


def _clipped(x: float) -> float:
    return max(-1.0, min(x, 1.0))
