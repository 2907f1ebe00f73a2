"""Which sequences are the two halves of a pair, for losses over pairs."""

from torch import Tensor

from tasft.loss.inputs import LossInputs


def pairs(inputs: LossInputs) -> tuple[Tensor, Tensor]:
    """Whether each sequence is a chosen half, (B,) bool, and the row of its rejected half, (B,) int64, 0 elsewhere.

    A half without tokens makes no pair. ValueError where the inputs have no partner.
    """
    if inputs.partner is None:
        raise ValueError("this loss is over pairs: set pairs: true in its yaml (partner is None)")
    rejected = inputs.partner.clamp(min=0)
    some = inputs.lengths > 0
    return (inputs.partner >= 0) & some & some[rejected], rejected
