"""Supervised fine-tuning: make the observed response likely."""

from torch import Tensor

from tasft.loss.inputs import LossInputs


def sft(inputs: LossInputs) -> Tensor:
    """Mean of -log Q(y) over the response, per sequence: (B,), nats per token, >= 0.

    Source: the paper's Eq. 1, with its sum over tokens read as a mean (arXiv:2412.06843). Weights by length
    (tasft.loss.weighting) make the token mean of a group of sequences out of it.
    """
    return -inputs.mean_over_response(inputs.logps)
