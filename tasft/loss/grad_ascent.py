"""Gradient ascent: supervised fine-tuning with the sign turned."""

from torch import Tensor

from tasft.loss.inputs import LossInputs


def grad_ascent(inputs: LossInputs) -> Tensor:
    """Mean of log Q(y) over the response, per sequence: (B,), nats per token, <= 0, without a lower bound.

    Source: github.com/locuslab/open-unlearning/blob/main/src/trainer/unlearn/grad_ascent.py; it takes the mean over
    all tokens of a micro-batch, where this is the mean of each response.
    """
    return inputs.mean_over_response(inputs.logps)
