"""Token unlikelihood: make every observed token unlikely by itself."""

from torch import Tensor

from tasft.loss.complement import log_complement
from tasft.loss.inputs import LossInputs, Reduction


def unlikelihood(inputs: LossInputs, reduction: Reduction = "mean") -> Tensor:
    """Minus the mean (or sum) of log(1 - Q(y)) over the response, per sequence: (B,), nats, >= 0.

    Its slope in the observed token's logit is Q(y). Source: Welleck et al. 2020 (arXiv:1908.04319), with the observed
    tokens as the negative ones; github.com/facebookresearch/unlikelihood_training (custom/candidate_penalty_ce_loss.py)
    takes the mean over all tokens of a batch and keeps 1 - Q(y) above 1e-5, where the slope is lost.
    """
    return -inputs.over_response(log_complement(inputs.logps), reduction)
