"""NPO, worked by hand, and its limits."""

import math
from dataclasses import replace

import torch

from tasft.loss.npo import npo


def test_worked_by_hand(with_probabilities):
    # Sequence 0: r = log(1/2 1/4) - log(1/4 1/8) = log 4; sequence 1: r = 0. With beta = 1/2: 4 log(1 + e^(r / 2)).
    inputs = with_probabilities(
        [[0.5, 0.5], [0.75, 0.25], [0.75, 0.25]], labels=[0, 1, 0], row=[0, 0, 1], reference=[0.25, 0.125, 0.75]
    )
    torch.testing.assert_close(npo(inputs, beta=0.5), torch.tensor([4 * math.log(3), 4 * math.log(2)]))


def test_a_small_beta_ascends_on_the_sum(random_inputs):
    inputs = random_inputs()
    (got,) = torch.autograd.grad(npo(inputs, beta=1e-9).sum(), inputs.hidden, retain_graph=True)
    (ascent,) = torch.autograd.grad(inputs.logps.sum(), inputs.hidden)
    torch.testing.assert_close(got, ascent)


def test_it_fades_below_the_reference(random_inputs):
    # The slope in r is 2 sigmoid(beta r).
    inputs = random_inputs()
    inputs = replace(inputs, ref_logps=inputs.logps.detach() + torch.tensor([50.0, 0, 0, 0, 0] + [0.0] * 35))
    (ascent,) = torch.autograd.grad(inputs.logps.sum(), inputs.hidden, retain_graph=True)
    (got,) = torch.autograd.grad(npo(inputs).sum(), inputs.hidden)
    torch.testing.assert_close(got[0], ascent[0] * 2 / (1 + math.exp(5)))
    torch.testing.assert_close(got[1:], ascent[1:])
