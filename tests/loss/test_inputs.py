"""LossInputs: reductions, sizes, and what it refuses."""

from dataclasses import replace

import pytest
import torch

from tasft.errors import UserError
from tasft.loss import naive
from tasft.loss.inputs import LossInputs
from tasft.loss.vocabulary import Head, TokenEmbedding


def test_reductions_by_hand(with_probabilities):
    # Tokens 0 and 2 belong to sequence 1, token 1 to sequence 0; sequences 2 and 3 have none.
    inputs = with_probabilities([[0.5, 0.5]] * 3, labels=[0, 0, 0], row=[1, 0, 1], size=4)
    x = torch.tensor([1.0, 10.0, 5.0])
    assert inputs.lengths.tolist() == [1, 2, 0, 0]
    assert inputs.sum_over_response(x).tolist() == [10, 6, 0, 0]
    assert inputs.mean_over_response(x).tolist() == [10, 3, 0, 0]
    assert inputs.over_response(x, "sum").tolist() == [10, 6, 0, 0]
    assert inputs.over_response(x, "mean").tolist() == [10, 3, 0, 0]
    with pytest.raises(UserError, match="'max'"):
        inputs.over_response(x, "max")


def test_size_defaults_to_the_last_sequence_with_a_token(with_probabilities):
    assert with_probabilities([[0.5, 0.5]], labels=[0], row=[2]).batch == 3
    empty = LossInputs(torch.zeros(0, 2), *torch.zeros(2, 0, dtype=torch.int64), torch.eye(2), None)
    assert empty.batch == 0


def test_bfloat16_is_summed_in_float32():
    # In bfloat16 256 + 1 is 256 again.
    row = torch.zeros(300, dtype=torch.int64)
    inputs = LossInputs(torch.zeros(300, 2), row, row, torch.eye(2), None)
    assert inputs.sum_over_response(torch.ones(300, dtype=torch.bfloat16)).tolist() == [300]


def test_lazy_values_are_the_twins(random_inputs):
    inputs = random_inputs()
    head = Head(inputs.head)
    torch.testing.assert_close(inputs.logps, naive.token_logps(inputs.hidden, inputs.labels, head))
    for got, twin in (inputs.emd_bound, naive.token_emd_bound), (inputs.emd, naive.token_emd):
        torch.testing.assert_close(got, twin(inputs.hidden, inputs.labels, head, inputs.embedding))
    mean = naive.expected_embedding(inputs.hidden, head, inputs.embedding)
    torch.testing.assert_close(inputs.expected_embedding, mean)


def test_a_plain_matrix_and_its_wrapper_are_the_same(random_inputs):
    plain = random_inputs()
    wrapped = replace(plain, head=Head(plain.head), embedding=TokenEmbedding.from_weight(plain.embedding))
    assert torch.equal(plain.emd_bound, wrapped.emd_bound)


def test_misuse_is_refused(random_inputs):
    inputs = random_inputs()
    with pytest.raises(ValueError, match=r"one entry per token, not \(40, 39, 40\)"):
        replace(inputs, labels=inputs.labels[1:])
    with pytest.raises(ValueError, match="embedding"):
        _ = replace(inputs, embedding=None).emd
