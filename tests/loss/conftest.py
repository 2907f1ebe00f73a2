"""Inputs of losses: with chosen probabilities or logits, or random."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tasft.loss.inputs import LossInputs


@pytest.fixture
def with_probabilities() -> Callable[..., LossInputs]:
    """Inputs whose Q is given: hidden states are log-probabilities (N, V), and the head changes nothing."""

    def make(
        probabilities: list[list[float]],
        labels: list[int],
        row: list[int],
        embedding: list[list[float]] | None = None,
        size: int | None = None,
    ) -> LossInputs:
        q = torch.tensor(probabilities)
        return LossInputs(
            hidden=q.log(),
            labels=torch.tensor(labels),
            row=torch.tensor(row),
            head=torch.eye(q.shape[1]),
            embedding=None if embedding is None else torch.tensor(embedding),
            size=size,
        )

    return make


@pytest.fixture
def with_logits() -> Callable[[Tensor, Tensor], LossInputs]:
    """One sequence whose logits (N, V) are given, each token with a unit embedding of its own."""

    def make(logits: Tensor, labels: Tensor) -> LossInputs:
        eye = torch.eye(logits.shape[1], dtype=logits.dtype)
        return LossInputs(logits.requires_grad_(), labels, torch.zeros_like(labels), eye, eye)

    return make


@pytest.fixture
def random_inputs() -> Callable[..., LossInputs]:
    """Inputs of 6 sequences, float64; the fourth one has no token, and the last one is long."""

    def make(tokens: int = 40, vocabulary: int = 17) -> LossInputs:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64, generator=generator)

        row = torch.tensor([0, 1, 1, 2, 4] + [5] * (tokens - 5))
        labels = torch.randint(vocabulary, (tokens,), generator=generator)
        hidden = normal(tokens, 7).requires_grad_()
        return LossInputs(hidden, labels, row, normal(vocabulary, 7), normal(vocabulary, 5), size=6)

    return make
