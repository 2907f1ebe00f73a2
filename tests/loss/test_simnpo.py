"""SimNPO, worked by hand."""

import math

import torch

from tasft.loss.simnpo import simnpo


def test_worked_by_hand(with_probabilities):
    # Sequence 0: n = -(log 1/2 + log 1/8) / 2 = log 4; sequence 1: n = log 2. -(2 / beta) log sigmoid(beta (n - delta))
    # with beta = 2: log(1 + e^(-2 (n - delta))).
    inputs = with_probabilities([[0.5, 0.5], [0.875, 0.125], [0.5, 0.5]], labels=[0, 1, 0], row=[0, 0, 1])
    torch.testing.assert_close(simnpo(inputs, beta=2.0), torch.tensor([math.log(17 / 16), math.log(5 / 4)]))
    shifted = simnpo(inputs, beta=2.0, delta=math.log(2))
    torch.testing.assert_close(shifted, torch.tensor([math.log(5 / 4), math.log(2)]))
