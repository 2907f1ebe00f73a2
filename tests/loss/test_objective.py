"""The two terms of a step: by hand, split into micro-batches, with lambda 0, and with a kind missing."""

from dataclasses import replace

import pytest
import torch

from tasft.loss.emd import emd
from tasft.loss.inputs import LossInputs
from tasft.loss.objective import Objective
from tasft.loss.sft import sft

OBJECTIVE = Objective(safe=sft, toxic=emd, weight=0.5, group=3)


def rows_of(inputs: LossInputs, rows: list[int]) -> LossInputs:
    """The inputs of some sequences only."""
    token = torch.isin(inputs.row, torch.tensor(rows))
    place = {b: i for i, b in enumerate(rows)}
    return replace(
        inputs,
        hidden=inputs.hidden[token],
        labels=inputs.labels[token],
        row=torch.tensor([place[int(b)] for b in inputs.row[token]], dtype=torch.int64),
        size=len(rows),
    )


def test_terms_by_hand(random_inputs):
    # Sequences of 1, 2, 1, 0, 1, 35 tokens; 2 and 5 are toxic. Groups {0, 1, 2} and {3, 4, 5}.
    inputs = random_inputs()
    weights = OBJECTIVE.weights([1, 2, 1, 0, 1, 35], [False, False, True, False, False, True])
    assert weights == pytest.approx([1 / 6, 1 / 3, 1 / 2, 0, 1 / 2, 1 / 2])
    w = torch.tensor(weights, dtype=torch.float64)
    terms = OBJECTIVE.terms(rows_of(inputs, [0, 1, 3, 4]), w[[0, 1, 3, 4]], rows_of(inputs, [2, 5]), w[[2, 5]])
    nll = -inputs.logps
    safe = ((nll[0] + nll[1] + nll[2]) / 3 + nll[4]) / 2
    toxic = -(inputs.emd_bound[3] + inputs.emd_bound[5:].sum()) / 2
    torch.testing.assert_close(terms.safe, safe)
    torch.testing.assert_close(terms.toxic, toxic)
    torch.testing.assert_close(terms.total, safe + 0.5 * toxic)


def test_micro_batches_add_up_to_the_step(random_inputs):
    inputs = random_inputs()
    toxic = {2, 5}
    w = torch.tensor(OBJECTIVE.weights([1, 2, 1, 0, 1, 35], [b in toxic for b in range(6)]), dtype=torch.float64)

    def total(rows: list[int]) -> torch.Tensor:
        safe, bad = [b for b in rows if b not in toxic], [b for b in rows if b in toxic]
        return OBJECTIVE.terms(rows_of(inputs, safe), w[safe], rows_of(inputs, bad), w[bad]).total

    def gradient(parts: list[list[int]]) -> torch.Tensor:
        return torch.autograd.grad(sum(total(rows) for rows in parts), inputs.hidden)[0]

    whole = gradient([[0, 1, 2, 3, 4, 5]])
    for parts in [[[0, 1, 2], [3, 4, 5]], [[5], [4, 0], [3], [1, 2]]]:
        torch.testing.assert_close(gradient(parts), whole)


def test_lambda_0_reports_the_toxic_term_and_learns_nothing_from_it(random_inputs):
    inputs = random_inputs()
    silent = replace(OBJECTIVE, weight=0.0)
    one = torch.ones(1, dtype=torch.float64)
    terms = silent.terms(rows_of(inputs, [1]), one, rows_of(inputs, [2]), one)
    assert terms.toxic < 0
    (grad,) = torch.autograd.grad(terms.total, inputs.hidden)
    assert (grad[1:3] != 0).all()
    assert (grad[3] == 0).all()


def test_a_missing_kind_is_0_on_the_graph(random_inputs):
    inputs = random_inputs()
    none = torch.ones(0, dtype=torch.float64)
    terms = OBJECTIVE.terms(rows_of(inputs, []), none, rows_of(inputs, []), none)
    assert (terms.safe, terms.toxic, terms.total) == (0, 0, 0)
    (grad,) = torch.autograd.grad(terms.total, inputs.hidden)
    assert torch.equal(grad, torch.zeros_like(grad))


def test_plain_sft_has_no_toxic_term(random_inputs):
    inputs = random_inputs()
    plain = replace(OBJECTIVE, toxic=None)
    one = torch.ones(1, dtype=torch.float64)
    terms = plain.terms(rows_of(inputs, [1]), one)
    assert terms.toxic == 0
    torch.testing.assert_close(terms.total, sft(rows_of(inputs, [1]))[0])
