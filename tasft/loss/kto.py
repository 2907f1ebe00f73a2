"""Kahneman-Tversky optimisation: one answer per prompt, desirable or not, against the base model."""

import torch
from torch import Tensor

from tasft.loss.inputs import LossInputs
from tasft.loss.reference import log_ratio


def kto_desirable(inputs: LossInputs, beta: float = 0.1) -> Tensor:
    """1 - sigmoid(beta (r - KL)) per sequence: (B,), in [0, 1]; 0 for a sequence without tokens.

    r = log pi(y|x) - log pi_ref(y|x) in nats, summed over the response; KL >= 0 is the step's reference point, a
    constant. Source: Ethayarajh et al. 2024 (arXiv:2402.01306), Eq. 7 and 8, as coded in
    github.com/huggingface/trl/blob/main/trl/trainer/kto_trainer.py; lambda_D is 1, lambda_U the weight of the loss.
    """
    return _loss(inputs, beta, 1)


def kto_undesirable(inputs: LossInputs, beta: float = 0.1) -> Tensor:
    """1 - sigmoid(beta (KL - r)) per sequence: (B,), in [0, 1]; 0 for a sequence without tokens. See kto_desirable."""
    return _loss(inputs, beta, -1)


def _loss(inputs: LossInputs, beta: float, sign: int) -> Tensor:
    if inputs.kl is None:
        raise ValueError("this loss needs KTO's reference point: set kl: true in its yaml (kl is None)")
    z = beta * (log_ratio(inputs) - inputs.kl)
    return torch.where(inputs.lengths > 0, torch.sigmoid(-sign * z), 0.0)  # 1 - sigmoid(z), exact near 0 too
