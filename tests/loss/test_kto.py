"""KTO, worked by hand, and where it saturates."""

from dataclasses import replace

import torch

from tasft.loss.kto import kto_desirable, kto_undesirable


def test_worked_by_hand(with_probabilities):
    # Sequence 0: r = log(1/2 1/4) - log(1/4 1/8) = log 4; sequence 1: r = log(3/4) - log(3/2 * 3/4) = log(2/3).
    # With beta = 1 and KL = log 2, e^(r - KL) is 2 and 1/3.
    inputs = with_probabilities(
        [[0.5, 0.5], [0.75, 0.25], [0.75, 0.25]], labels=[0, 1, 0], row=[0, 0, 1],
        reference=[0.25, 0.125, 1.125], kl=torch.tensor(2.0).log().item(),
    )  # fmt: skip
    torch.testing.assert_close(kto_desirable(inputs, beta=1.0), torch.tensor([1 / 3, 3 / 4]))
    torch.testing.assert_close(kto_undesirable(inputs, beta=1.0), torch.tensor([2 / 3, 1 / 4]))


def test_equal_to_the_reference_both_are_a_half(with_probabilities):
    inputs = with_probabilities([[0.5, 0.5]], labels=[0], row=[0], reference=[0.5], kl=0.0)
    assert (kto_desirable(inputs), kto_undesirable(inputs)) == (0.5, 0.5)


def test_what_is_far_below_the_reference_keeps_a_slope(with_logits):
    # r = -200: the undesirable loss and its slope in r are sigmoid(-20) and a tenth of it, not 1 - 1 = 0.
    inputs = with_logits(torch.tensor([[-200.0, 0.0]]), torch.tensor([0]))
    inputs = replace(inputs, ref_logps=torch.zeros(1), kl=torch.zeros(()))
    value = kto_undesirable(inputs)
    (grad,) = torch.autograd.grad(value.sum(), inputs.hidden)
    want = torch.sigmoid(torch.tensor(-20.0))
    torch.testing.assert_close(value, want[None], rtol=1e-5, atol=0)
    torch.testing.assert_close(grad[0, 0], want / 10, rtol=1e-5, atol=0)
