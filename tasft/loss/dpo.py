"""Direct preference optimisation, over pairs of a chosen and a rejected answer."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tasft.loss.inputs import LossInputs
from tasft.loss.pair import pairs
from tasft.loss.reference import log_ratio


def dpo(inputs: LossInputs, beta: float = 0.1) -> Tensor:
    """-log sigmoid(beta (r_w - r_l)) at a pair's chosen half, 0 at every other sequence: (B,), nats, >= 0.

    r = log pi(y|x) - log pi_ref(y|x), summed over the response, of the chosen (w) and the rejected half (l). Source:
    Rafailov et al. 2023 (arXiv:2305.18290), Eq. 7, as coded in
    github.com/huggingface/trl/blob/main/trl/trainer/dpo_trainer.py (loss_type sigmoid).
    """
    chosen, rejected = pairs(inputs)
    r = log_ratio(inputs)
    return torch.where(chosen, -logsigmoid(beta * (r - r[rejected])), 0.0)
