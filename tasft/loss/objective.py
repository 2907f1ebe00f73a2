"""A loss for the safe rows, a loss for the toxic ones, and how they add up (the paper's Eq. 6 and 8)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from tasft.loss.inputs import LossInputs
from tasft.loss.weighting import SafeReduction, Weighting, equal_weights, example_weights

Loss = Callable[[LossInputs], Tensor]  # B sequences in, one number for each out (B,); lower is better


@dataclass(frozen=True)
class Terms:
    """What some rows of a step contribute to its loss: the terms of its micro-batches add up."""

    safe: Tensor  # ()
    toxic: Tensor  # () without lambda
    total: Tensor  # () safe + lambda * toxic: what backward() starts from
    watched: tuple[Tensor, Tensor] | None = None  # how far toxic answers have fallen in all, nats, and their number


@dataclass(frozen=True)
class Objective:
    """L = safe term + weight * toxic term, each averaged within groups of `group` examples."""

    safe: Loss
    toxic: Loss | None  # None: plain SFT, toxic rows have no loss
    weight: float  # lambda, >= 0
    group: int  # B of Eq. 6
    safe_reduction: SafeReduction = "token_mean"
    weighting: Weighting = "groups"
    reference: bool = False  # the losses want ref_logps
    kl: bool = False  # the losses want kl
    pairs: bool = False  # the toxic loss is over pairs

    def weights(self, lengths: Sequence[int], toxic: Sequence[bool]) -> list[float]:
        """The weight of each example of a step, without lambda: terms() applies it, reports without.

        A pair is one toxic example, as long as its chosen answer.
        """
        if self.weighting == "examples":
            return equal_weights(lengths)
        return example_weights(lengths, toxic, self.group, 1.0, self.safe_reduction)

    def terms(
        self,
        safe_inputs: LossInputs,
        safe_weights: Tensor,  # (B_safe,) from weights()
        toxic_inputs: LossInputs | None = None,
        toxic_weights: Tensor | None = None,  # (B_toxic,)
    ) -> Terms:
        """The weighted sums over the given rows. A kind may be empty: its term is 0, on its inputs' graph."""
        safe = (self.safe(safe_inputs) * safe_weights).sum()
        if self.toxic is None or toxic_inputs is None or toxic_weights is None:
            return Terms(safe, safe.new_zeros(()), safe)
        toxic = (self.toxic(toxic_inputs) * toxic_weights).sum()
        return Terms(safe, toxic, safe + self.weight * toxic)
