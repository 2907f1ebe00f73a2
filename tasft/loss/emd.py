"""Earth mover's distance: push the prediction away from the meaning of the observed token."""

from torch import Tensor

from tasft.loss.inputs import LossInputs, Reduction


def emd(inputs: LossInputs, reduction: Reduction = "sum") -> Tensor:
    """Minus the sum (or mean) of ||e_y - m||^2 over the response, per sequence: (B,), <= 0, >= -4 per token.

    m = sum_w Q(w) e_w with e_w unit-norm embeddings. Source: Lu et al. 2025 (arXiv:2412.06843), Eq. 5.
    Its slope fades both as Q(y) -> 0 (there is nothing left to push) and as Q(y) -> 1.
    """
    return -inputs.over_response(inputs.emd_bound, reduction)


def emd_exact(inputs: LossInputs, reduction: Reduction = "sum") -> Tensor:
    """Minus the sum (or mean) of 1 - e_y.m over the response, per sequence: (B,), <= 0, >= -2 per token.

    The distance itself (Eq. 3 with Eq. 4's cosine cost), where Eq. 5 takes a bound: from a one-hot target
    there is one transport plan only. Unlike the bound it does not also reward a peaked prediction.
    """
    return -inputs.over_response(inputs.emd, reduction)
