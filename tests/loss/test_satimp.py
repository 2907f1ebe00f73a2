"""SatImp, worked by hand, and its slope."""

import math

import torch

from tasft.loss.satimp import satimp
from tasft.loss.wga import wga


def test_worked_by_hand(with_probabilities):
    # beta1 = 1, beta2 = 2. Sequence 0: (1/2 1/4 log 1/2 + 1/4 9/16 log 1/4) / 2 = -13/64 log 2.
    # Sequence 1: 3/4 1/16 log 3/4.
    inputs = with_probabilities([[0.5, 0.5], [0.75, 0.25], [0.75, 0.25]], labels=[0, 1, 0], row=[0, 0, 1])
    want = torch.tensor([-13 / 64 * math.log(2), 3 / 64 * math.log(0.75)])
    torch.testing.assert_close(satimp(inputs, beta1=1.0, beta2=2.0), want)


def test_without_importance_it_is_wga(random_inputs):
    inputs = random_inputs()
    got, want = satimp(inputs, beta1=0.5, beta2=0.0), wga(inputs, beta=0.5)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(
        torch.autograd.grad(got.sum(), inputs.hidden, retain_graph=True),
        torch.autograd.grad(want.sum(), inputs.hidden),
    )
