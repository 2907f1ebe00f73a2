"""DPO, worked by hand, and what a pair without one half comes to."""

import math
from dataclasses import replace

import torch

from tasft.loss.dpo import dpo


def test_worked_by_hand(with_probabilities):
    # Row 1 is chosen over row 0: r_l = log(1/2 1/4) - log(1/4 1/8) = log 4, r_w = log 3/4 - log 3/8 = log 2.
    # With beta = 1: -log sigmoid(-log 2) = log 3. Row 2 has no partner.
    inputs = with_probabilities(
        [[0.5, 0.5], [0.75, 0.25], [0.75, 0.25], [0.5, 0.5]], labels=[0, 1, 0, 0], row=[0, 0, 1, 2],
        reference=[0.25, 0.125, 0.375, 0.5], partner=[-1, 0, -1],
    )  # fmt: skip
    torch.testing.assert_close(dpo(inputs, beta=1.0), torch.tensor([0.0, math.log(3), 0.0]))


def test_equal_to_the_reference_it_is_log_2_and_pushes_the_halves_apart(random_inputs):
    inputs = random_inputs()
    inputs = replace(inputs, ref_logps=inputs.logps.detach())
    value = dpo(inputs)
    torch.testing.assert_close(value[[0, 2, 4]], torch.full((3,), math.log(2), dtype=torch.float64))
    (slope,) = torch.autograd.grad(value.sum(), inputs.logps)
    assert slope.tolist() == [-0.05] + [0.05] * 2 + [-0.05] * 2 + [0.1] * 35  # beta / 2; row 5 is rejected twice


def test_a_pair_without_one_half_has_no_loss(random_inputs):
    assert dpo(replace(random_inputs(), partner=torch.tensor([3, -1, -1, 0, -1, -1]))).tolist() == [0.0] * 6
