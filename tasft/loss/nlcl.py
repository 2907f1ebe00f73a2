"""Negative log complement likelihood: make the observed response unlikely."""

import math
from typing import Literal

import torch
from torch import Tensor

from tasft.errors import UserError
from tasft.loss.inputs import LossInputs

# 1 - p is taken as no less than this: the loss stays below 70 nats, and its slope of at most 1e30 within
# float32's range, with room for an example's weight.
SMALLEST_COMPLEMENT = 1e-30


def nlcl(inputs: LossInputs, probability: Literal["normalised", "sequence"] = "normalised") -> Tensor:
    """-log(1 - p) per sequence: (B,), nats, >= 0; 0 for a sequence without tokens.

    p is the geometric mean of the tokens' probabilities ("normalised"), or their product ("sequence"), which
    is about e^-100 for a real answer and then has no slope to speak of. Source: Lu et al. 2025
    (arXiv:2412.06843), Eq. 7; it follows ORPO, whose code takes the mean (github.com/xfactlab/orpo).
    """
    if probability == "normalised":
        log_p = inputs.mean_over_response(inputs.logps)
    elif probability == "sequence":
        log_p = inputs.sum_over_response(inputs.logps)
    else:
        raise UserError(f"nlcl's probability is {probability!r}; set it to 'normalised' or 'sequence'")
    return torch.where(inputs.lengths > 0, -_log_complement(log_p), 0.0)


def _log_complement(log_p: Tensor) -> Tensor:
    """log(1 - e^log_p) for log_p <= 0, exact on both sides of p = 1/2 (Maechler 2012, log1mexp)."""
    # Each branch sees only its own half: where() would turn the other's infinite slope into NaN.
    likely = log_p.clamp(-math.log(2), -SMALLEST_COMPLEMENT)
    unlikely = log_p.clamp(max=-math.log(2))
    return torch.where(log_p > -math.log(2), (-torch.expm1(likely)).log(), torch.log1p(-unlikely.exp()))
