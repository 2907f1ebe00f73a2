"""The distance and its bound: worked by hand, and against a solver of the transport problem."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from tasft.errors import UserError
from tasft.loss.emd import emd, emd_exact
from tasft.loss.inputs import LossInputs

# Directions (1, 0), (0, 1), (-1, 0): lengths must not matter.
EMBEDDING = [[2.0, 0.0], [0.0, 0.5], [-3.0, 0.0]]


def test_worked_by_hand(with_probabilities):
    # Q = (1/2, 1/4, 1/4): m = (1/4, 1/4).
    # y = 0: ||(3/4, -1/4)||^2 = 5/8, 1 - e_y.m = 3/4.   y = 1: ||(-1/4, 3/4)||^2 = 5/8, 3/4.
    # y = 2: ||(-5/4, -1/4)||^2 = 13/8, 5/4.
    q = [0.5, 0.25, 0.25]
    inputs = with_probabilities([q] * 3, labels=[0, 2, 1], row=[0, 0, 1], embedding=EMBEDDING)
    torch.testing.assert_close(emd(inputs), -torch.tensor([18 / 8, 5 / 8]))
    torch.testing.assert_close(emd(inputs, reduction="mean"), -torch.tensor([9 / 8, 5 / 8]))
    torch.testing.assert_close(emd_exact(inputs), -torch.tensor([2.0, 3 / 4]))
    torch.testing.assert_close(emd_exact(inputs, reduction="mean"), -torch.tensor([1.0, 3 / 4]))


@pytest.mark.parametrize("loss", [emd, emd_exact])
def test_another_reduction_is_refused(loss, random_inputs):
    with pytest.raises(UserError, match="reduction"):
        loss(random_inputs(), reduction="none")


@pytest.mark.parametrize("loss", [emd, emd_exact])
def test_a_step_downhill_makes_the_token_less_likely(loss):
    torch.manual_seed(0)
    logits = torch.randn(20, 9, requires_grad=True)
    labels, row = torch.randint(9, (20,)), torch.zeros(20, dtype=torch.int64)
    embedding = torch.nn.functional.normalize(torch.eye(9) + 0.1 * torch.randn(9, 9), dim=1)
    (grad,) = torch.autograd.grad(loss(LossInputs(logits, labels, row, torch.eye(9), embedding)).sum(), logits)
    assert (grad.gather(1, labels[:, None]) > 0).all()


def transport_cost(p: np.ndarray, q: np.ndarray, unit: np.ndarray) -> float:
    """The earth mover's distance by its definition (Eq. 3), with cosine cost (Eq. 4)."""
    n = len(p)
    cost = 1 - unit @ unit.T
    leaves, arrives = np.kron(np.eye(n), np.ones(n)), np.kron(np.ones(n), np.eye(n))
    solved = linprog(cost.ravel(), A_eq=np.vstack([leaves, arrives]), b_eq=np.concatenate([p, q]))
    assert solved.success
    return float(solved.fun)


def random_unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_exact_emd_is_the_optimal_transport_to_the_observed_token():
    rng = np.random.default_rng(0)
    q, unit = rng.dirichlet(np.full(7, 0.3), size=7), random_unit(rng, 7, 4)
    tokens = torch.arange(7)
    inputs = LossInputs(torch.tensor(q).log(), tokens, tokens, torch.eye(7).double(), torch.tensor(5 * unit))
    solver = [transport_cost(np.eye(7)[y], q[y], unit) for y in range(7)]
    np.testing.assert_allclose(-emd_exact(inputs).numpy(), solver, atol=1e-9)


def test_jensens_bound_holds_and_is_tighter_than_the_papers():
    # EMD = 1/2 E||e_x - e_y||^2 >= 1/2 ||E(e_x - e_y)||^2 = 1/2 ||m_P - m_Q||^2, for any coupling and so for the
    # best. Proposition 1 has 1 / (2 |V|^2) in place of 1/2.
    rng = np.random.default_rng(1)
    for _ in range(50):
        size = int(rng.integers(2, 8))
        p, q = rng.dirichlet(np.full(size, 0.5), size=2)
        unit = random_unit(rng, size, 3)
        squared = float(np.sum((p @ unit - q @ unit) ** 2))
        distance = transport_cost(p, q, unit)
        assert distance >= squared / 2 - 1e-9
        assert squared / 2 > squared / (2 * size**2) > 0


def test_jensens_bound_is_reached():
    # All mass moves along one vector: P and Q on one token each.
    unit = random_unit(np.random.default_rng(2), 2, 3)
    distance = transport_cost(np.array([1.0, 0.0]), np.array([0.0, 1.0]), unit)
    assert distance == pytest.approx(np.sum((unit[0] - unit[1]) ** 2) / 2)
