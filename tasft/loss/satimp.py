"""SatImp: gradient ascent weighted by saturation and importance."""

from torch import Tensor, expm1

from tasft.loss.inputs import LossInputs


def satimp(inputs: LossInputs, beta1: float = 5.0, beta2: float = 1.0) -> Tensor:
    """Mean of w log Q(y) over the response, w = Q(y)^beta1 (1 - Q(y))^beta2 a constant: (B,), nats per token, <= 0.

    beta2 = 0 is weighted gradient ascent (wga). Source: Yang et al. 2025 (arXiv:2505.11953), as coded in
    github.com/locuslab/open-unlearning/blob/main/src/trainer/utils.py (compute_satimp_loss), which takes the mean
    over all tokens of a micro-batch.
    """
    log_p = inputs.logps.detach()
    return inputs.mean_over_response((beta1 * log_p).exp() * (-expm1(log_p)) ** beta2 * inputs.logps)
