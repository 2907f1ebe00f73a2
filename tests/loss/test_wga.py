"""Weighted gradient ascent, worked by hand, and its slope."""

import math

import torch

from tasft.loss.grad_ascent import grad_ascent
from tasft.loss.wga import wga


def test_worked_by_hand(with_probabilities):
    # Sequence 0, beta = 2: (1/4 log 1/2 + 1/16 log 1/4) / 2 = -3/16 log 2. Sequence 1: 9/16 log 3/4.
    inputs = with_probabilities([[0.5, 0.5], [0.75, 0.25], [0.75, 0.25]], labels=[0, 1, 0], row=[0, 0, 1])
    torch.testing.assert_close(wga(inputs, beta=2.0), torch.tensor([-3 / 16 * math.log(2), 9 / 16 * math.log(0.75)]))


def test_the_slope_is_ascent_times_the_probability(random_inputs):
    inputs = random_inputs()
    (got,) = torch.autograd.grad(wga(inputs).sum(), inputs.hidden, retain_graph=True)
    (ascent,) = torch.autograd.grad(grad_ascent(inputs).sum(), inputs.hidden)
    torch.testing.assert_close(got, ascent * inputs.logps.detach().exp()[:, None])
