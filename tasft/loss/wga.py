"""Weighted gradient ascent: ascent that leaves alone what is unlikely already."""

from torch import Tensor

from tasft.loss.inputs import LossInputs


def wga(inputs: LossInputs, beta: float = 1.0) -> Tensor:
    """Mean of w log Q(y) over the response, w = Q(y)^beta a constant, per sequence: (B,), nats per token, <= 0.

    beta = 0 is gradient ascent. Source: Wang et al. 2025 (arXiv:2502.19301), as coded in
    github.com/locuslab/open-unlearning/blob/main/src/trainer/utils.py (compute_wga_loss), which takes the mean over
    all tokens of a micro-batch.
    """
    return inputs.mean_over_response((beta * inputs.logps.detach()).exp() * inputs.logps)
