"""Negative preference optimisation: DPO's rejected half alone."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tasft.loss.inputs import LossInputs
from tasft.loss.reference import log_ratio


def npo(inputs: LossInputs, beta: float = 0.1) -> Tensor:
    """-(2 / beta) log sigmoid(-beta r) per sequence: (B,), nats, >= 0; 0 for a sequence without tokens.

    r = log pi(y|x) - log pi_ref(y|x), summed over the response. As beta -> 0 it is gradient ascent on the sum, and
    it fades where r is far below 0. Source: Zhang et al. 2024 (arXiv:2404.05868), as coded in
    github.com/locuslab/open-unlearning/blob/main/src/trainer/utils.py (compute_dpo_loss).
    """
    return torch.where(inputs.lengths > 0, -2 / beta * logsigmoid(-beta * log_ratio(inputs)), 0.0)
