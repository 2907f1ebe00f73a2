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
        reference: list[float] | None = None,
        kl: float | None = None,
        partner: list[int] | None = None,
    ) -> LossInputs:
        """`reference` is a probability per token too."""
        q = torch.tensor(probabilities)
        return LossInputs(
            hidden=q.log(),
            labels=torch.tensor(labels),
            row=torch.tensor(row),
            head=torch.eye(q.shape[1]),
            embedding=None if embedding is None else torch.tensor(embedding),
            size=size,
            ref_logps=None if reference is None else torch.tensor(reference).log(),
            kl=None if kl is None else torch.tensor(kl),
            partner=None if partner is None else torch.tensor(partner),
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
    """Inputs of 6 sequences, float64; the fourth one has no token, and the last one is long.

    As pairs, the chosen ones are 0, 2 and 4, the rejected ones 1 and twice 5.
    """

    def make(tokens: int = 40, vocabulary: int = 17) -> LossInputs:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64, generator=generator)

        row = torch.tensor([0, 1, 1, 2, 4] + [5] * (tokens - 5))
        labels = torch.randint(vocabulary, (tokens,), generator=generator)
        hidden = normal(tokens, 7).requires_grad_()
        head, embedding = normal(vocabulary, 7), normal(vocabulary, 5)
        return LossInputs(
            hidden, labels, row, head, embedding, size=6,
            ref_logps=-3 * normal(tokens).abs(), kl=torch.tensor(0.3, dtype=torch.float64),
            partner=torch.tensor([1, -1, 5, -1, 5, -1]),
        )  # fmt: skip

    return make
