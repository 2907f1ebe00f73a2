"""Negative log complement likelihood: make the observed response unlikely."""

from typing import Literal

import torch
from torch import Tensor

from tasft.errors import UserError
from tasft.loss.complement import log_complement
from tasft.loss.inputs import LossInputs


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
    return torch.where(inputs.lengths > 0, -log_complement(log_p), 0.0)
