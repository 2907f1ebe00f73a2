"""What every loss keeps: shape, empty sequences, order, chunks, extreme probabilities, empty inputs."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from tasft.loss import ops
from tasft.loss.emd import emd, emd_exact
from tasft.loss.inputs import LossInputs
from tasft.loss.nlcl import nlcl
from tasft.loss.sft import sft

LOSSES = {
    "sft": sft,
    "emd": emd,
    "emd mean": partial(emd, reduction="mean"),
    "emd_exact": emd_exact,
    "emd_exact mean": partial(emd_exact, reduction="mean"),
    "nlcl": nlcl,
    "nlcl sequence": partial(nlcl, probability="sequence"),
}
pytestmark = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def value_and_gradient(loss, inputs):
    value = loss(inputs)
    return value, torch.autograd.grad((value * torch.arange(1, len(value) + 1)).sum(), inputs.hidden)[0]


def test_one_number_per_sequence_and_0_for_one_without_tokens(loss, random_inputs):
    value, grad = value_and_gradient(loss, random_inputs())
    assert value.shape == (6,)
    assert value[3] == 0
    assert (value[[0, 1, 2, 4, 5]] != 0).all()
    assert (grad != 0).any(dim=1).all()


def test_sequences_do_not_see_each_other(loss, random_inputs):
    inputs = random_inputs()
    mine = inputs.row == 1
    alone = replace(
        inputs,
        hidden=inputs.hidden[mine],
        labels=inputs.labels[mine],
        row=torch.zeros(2, dtype=torch.int64),
        size=1,
    )
    torch.testing.assert_close(loss(alone)[0], loss(inputs)[1])


def test_the_order_of_tokens_and_sequences_does_not_matter(loss, random_inputs):
    inputs = random_inputs()
    tokens, sequences = torch.randperm(40), torch.randperm(6)
    shuffled = replace(
        inputs,
        hidden=inputs.hidden[tokens],
        labels=inputs.labels[tokens],
        row=sequences[inputs.row[tokens]],
    )
    torch.testing.assert_close(loss(shuffled)[sequences], loss(inputs))


@pytest.mark.parametrize("tokens", [255, 256, 257, 400])
def test_chunks_do_not_matter(loss, random_inputs, monkeypatch, tokens):
    whole = value_and_gradient(loss, random_inputs(tokens))
    monkeypatch.setitem(ops.CHUNK_ELEMENTS, "cpu", 1)
    torch.testing.assert_close(value_and_gradient(loss, random_inputs(tokens)), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("margin", [-1000.0, -80.0, 17.0, 80.0, 1000.0])
def test_finite_where_the_probability_rounds_to_1_or_0(loss, with_logits, dtype, margin):
    logits = torch.tensor([[margin, 0.0, -1.0]] * 3, dtype=dtype)
    value, grad = value_and_gradient(loss, with_logits(logits, torch.zeros(3, dtype=torch.int64)))
    assert value.dtype == torch.float32
    assert value.isfinite().all()
    assert grad.isfinite().all()


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("size", [0, 2])
def test_no_tokens_at_all_still_have_a_backward_pass(loss, size, trained):
    weight = torch.randn(4, 3, requires_grad=trained)
    hidden = torch.zeros(0, 3, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.int64)
    value = loss(LossInputs(hidden, nothing, nothing, weight, weight, size=size))
    assert value.tolist() == [0.0] * size
    value.sum().backward()
    assert hidden.grad is not None
    if trained:
        assert torch.equal(weight.grad, torch.zeros(4, 3))
