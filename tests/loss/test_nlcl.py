"""The complement likelihood: worked by hand, against the plain formula, and where p rounds to 1 or 0."""

import math

import pytest
import torch

from tasft.errors import UserError
from tasft.loss import naive
from tasft.loss.nlcl import nlcl


def test_worked_by_hand(with_probabilities):
    # Sequence 0: tokens of 0.8 and 0.2, geometric mean 0.4, product 0.16. Sequence 1: one token of 0.2.
    inputs = with_probabilities([[0.8, 0.2]] * 3, labels=[0, 1, 1], row=[0, 0, 1])
    torch.testing.assert_close(nlcl(inputs), torch.tensor([-math.log(0.6), -math.log(0.8)]))
    sequence = nlcl(inputs, probability="sequence")
    torch.testing.assert_close(sequence, torch.tensor([-math.log(0.84), -math.log(0.8)]))


def test_matches_the_plain_formula_in_value_and_gradient(random_inputs):
    inputs = random_inputs()
    got = nlcl(inputs)
    logps = naive.token_logps(inputs.hidden, inputs.labels, naive.Head(inputs.head))
    plain = torch.stack(
        [naive.nlcl(logps[inputs.row == b]) if b != 3 else torch.zeros((), dtype=torch.float64) for b in range(6)]
    )
    torch.testing.assert_close(got, plain)
    torch.testing.assert_close(
        torch.autograd.grad(got.sum(), inputs.hidden), torch.autograd.grad(plain.sum(), inputs.hidden)
    )


def test_a_sequence_without_tokens_has_no_loss(with_probabilities):
    assert nlcl(with_probabilities([[0.5, 0.5]], [0], [1], size=3)).tolist()[::2] == [0, 0]


@pytest.mark.parametrize("margin", [20.0, 40.0, 60.0])
def test_value_and_slope_are_right_where_the_probability_rounds_to_one(with_logits, margin):
    # Against one other token `margin` below, p = 1 / (1 + e^-margin): -log(1 - p) is margin + log(1 + e^-margin),
    # with slope p in the margin.
    inputs = with_logits(torch.tensor([[margin, 0.0]]), torch.tensor([0]))
    value = nlcl(inputs)
    torch.testing.assert_close(value, torch.tensor([margin]))
    (grad,) = torch.autograd.grad(value.sum(), inputs.hidden)
    torch.testing.assert_close(grad, torch.tensor([[1.0, -1.0]]))


def test_a_small_probability_keeps_its_slope(with_logits):
    # p = e^-30: the loss and its slope are p.
    inputs = with_logits(torch.tensor([[-30.0, 0.0]]), torch.tensor([0]))
    value = nlcl(inputs)
    (grad,) = torch.autograd.grad(value.sum(), inputs.hidden)
    torch.testing.assert_close(value, torch.tensor([math.exp(-30)]), rtol=1e-5, atol=0)
    torch.testing.assert_close(grad[0, 0], torch.tensor(math.exp(-30)), rtol=1e-5, atol=0)


def test_another_probability_is_refused(random_inputs):
    with pytest.raises(UserError, match="probability"):
        nlcl(random_inputs(), probability="mean")
