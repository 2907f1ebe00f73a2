"""Gradient ascent, worked by hand, and against the likelihood loss."""

import math

import torch

from tasft.loss.grad_ascent import grad_ascent
from tasft.loss.sft import sft


def test_worked_by_hand(with_probabilities):
    # Sequence 0: (log 1/2 + log 1/4) / 2 = -1.5 log 2. Sequence 1: log 3/4.
    inputs = with_probabilities([[0.5, 0.5], [0.75, 0.25], [0.75, 0.25]], labels=[0, 1, 0], row=[0, 0, 1])
    torch.testing.assert_close(grad_ascent(inputs), torch.tensor([-1.5 * math.log(2), math.log(0.75)]))


def test_it_undoes_the_likelihood_loss(random_inputs):
    inputs = random_inputs()
    assert torch.equal(grad_ascent(inputs), -sft(inputs))
