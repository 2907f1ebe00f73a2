"""Odds ratio preference optimisation: fine-tuning on the chosen answer, with odds above the rejected one's."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tasft.loss.complement import log_complement
from tasft.loss.inputs import LossInputs
from tasft.loss.pair import pairs


def orpo(inputs: LossInputs, beta: float = 0.1) -> Tensor:
    """-log p_w - beta log sigmoid(log odds_w - log odds_l) at a pair's chosen half, else 0: (B,), nats, >= 0.

    p is the geometric mean of the response's token probabilities, of the chosen (w) and the rejected half (l);
    odds = p / (1 - p). Source: Hong et al. 2024 (arXiv:2403.07691), Eq. 6 and 7, whose lambda is beta here, as coded in
    github.com/huggingface/trl/blob/main/trl/experimental/orpo/orpo_trainer.py; that takes the first term over prompt
    and response, as a mean over all tokens of a micro-batch, where this is the mean over each response.
    """
    chosen, rejected = pairs(inputs)
    log_p = inputs.mean_over_response(inputs.logps)
    log_odds = log_p - log_complement(log_p)
    return torch.where(chosen, -log_p - beta * logsigmoid(log_odds - log_odds[rejected]), 0.0)
