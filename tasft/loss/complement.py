"""log(1 - p) from log p, for losses that push a probability down."""

import math

import torch
from torch import Tensor

# 1 - p is taken as no less than this: the loss stays below 70 nats, and its slope of at most 1e30 within
# float32's range, with room for an example's weight.
SMALLEST_COMPLEMENT = 1e-30


def log_complement(log_p: Tensor) -> Tensor:
    """log(1 - e^log_p) for log_p <= 0, exact on both sides of p = 1/2 (Maechler 2012, log1mexp)."""
    # Each branch sees only its own half: where() would turn the other's infinite slope into NaN.
    likely = log_p.clamp(-math.log(2), -SMALLEST_COMPLEMENT)
    unlikely = log_p.clamp(max=-math.log(2))
    return torch.where(log_p > -math.log(2), (-torch.expm1(likely)).log(), torch.log1p(-unlikely.exp()))
