"""Token unlikelihood: worked by hand, and where a probability rounds to 1."""

import math

import pytest
import torch

from tasft.loss.unlikelihood import unlikelihood


def test_worked_by_hand(with_probabilities):
    # Sequence 0: -(log 1/2 + log 3/4); sequence 1: -log 1/4.
    inputs = with_probabilities([[0.5, 0.5], [0.75, 0.25], [0.75, 0.25]], labels=[0, 1, 0], row=[0, 0, 1])
    torch.testing.assert_close(unlikelihood(inputs), torch.tensor([-math.log(3 / 8) / 2, math.log(4)]))
    torch.testing.assert_close(unlikelihood(inputs, reduction="sum"), torch.tensor([-math.log(3 / 8), math.log(4)]))


@pytest.mark.parametrize("margin", [-20.0, 0.0, 20.0, 60.0])
def test_the_slope_in_the_observed_logit_is_its_probability(with_logits, margin):
    # Against one other token `margin` below, -log(1 - p) = log(1 + e^margin): no clamp at 1e-5 that ends the slope.
    inputs = with_logits(torch.tensor([[margin, 0.0]]), torch.tensor([0]))
    value = unlikelihood(inputs)
    (grad,) = torch.autograd.grad(value.sum(), inputs.hidden)
    want = torch.tensor(margin, dtype=torch.float64)
    torch.testing.assert_close(value[0].double(), want.exp().log1p(), rtol=1e-5, atol=0)
    torch.testing.assert_close(grad[0].double(), want.sigmoid() * torch.tensor([1.0, -1.0]).double(), rtol=1e-5, atol=0)
