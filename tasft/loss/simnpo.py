"""SimNPO: negative preference optimisation by the mean log-probability, without a reference."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tasft.loss.inputs import LossInputs


def simnpo(inputs: LossInputs, beta: float = 4.5, delta: float = 0.0) -> Tensor:
    """-(2 / beta) log sigmoid(beta (n - delta)) per sequence: (B,), >= 0; 0 for a sequence without tokens.

    n is the mean of -log Q(y) over the response, delta a margin, both in nats per token. The paper (Fan et al. 2024,
    arXiv:2410.07163) writes the margin beside beta n, as gamma = beta delta; the code multiplies both:
    github.com/locuslab/open-unlearning/blob/main/src/trainer/unlearn/simnpo.py.
    """
    margin = -inputs.mean_over_response(inputs.logps) - delta
    return torch.where(inputs.lengths > 0, -2 / beta * logsigmoid(beta * margin), 0.0)
