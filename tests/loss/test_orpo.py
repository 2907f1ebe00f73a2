"""ORPO, worked by hand."""

import math
from dataclasses import replace

import torch

from tasft.loss.orpo import orpo


def test_worked_by_hand(with_probabilities):
    # Row 1 is chosen over row 0. p_l = sqrt(1/2 1/8) = 1/4, odds 1/3; p_w = 3/4, odds 3: an odds ratio of 9.
    # -log 3/4 + beta log(1 + 1/9). Row 2 has no partner.
    inputs = with_probabilities(
        [[0.5, 0.5], [0.875, 0.125], [0.75, 0.25], [0.5, 0.5]], labels=[0, 1, 0, 0], row=[0, 0, 1, 2],
        partner=[-1, 0, -1],
    )  # fmt: skip
    want = math.log(4 / 3) + 0.5 * math.log(10 / 9)
    torch.testing.assert_close(orpo(inputs, beta=0.5), torch.tensor([0.0, want, 0.0]))


def test_without_beta_it_is_fine_tuning_on_the_chosen_answers(random_inputs):
    inputs = random_inputs()
    (slope,) = torch.autograd.grad(orpo(inputs, beta=0.0).sum(), inputs.logps)
    assert slope.tolist() == [-1.0, 0, 0, -1.0, -1.0] + [0.0] * 35


def test_a_pair_without_one_half_has_no_loss(random_inputs):
    assert orpo(replace(random_inputs(), partner=torch.tensor([3, -1, -1, 0, -1, -1]))).tolist() == [0.0] * 6
