"""What every loss sees: the response tokens of B sequences, and lazy values per token."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from tasft.errors import UserError
from tasft.loss import ops
from tasft.loss.vocabulary import Head, TokenEmbedding

Reduction = Literal["sum", "mean"]


@dataclass(frozen=True)
class LossInputs:
    """N response tokens of B sequences over a vocabulary of V; entry i of every (N, ...) field is one token.

    hidden[i] is the state that predicts labels[i], so no loss ever shifts; prompt tokens are not here at all.
    N may be 0: every value is then empty but hangs on hidden's graph, so that each rank has a backward pass.
    A sequence without tokens gives 0 in sums and in means.
    """

    hidden: Tensor  # (N, D)
    labels: Tensor  # (N,) int64, the observed token
    row: Tensor  # (N,) int64, which sequence the token belongs to, in any order
    head: Tensor | Head  # (V, D), or with what the model puts after it
    embedding: Tensor | TokenEmbedding | None  # (V, E), or with its norms; None: for losses that ignore meaning
    size: int | None = None  # B; None: the last row that has a token (on a GPU this waits for the device)
    ref_logps: Tensor | None = None  # (N,) nats, under the frozen base model
    kl: Tensor | None = None  # () KTO's reference point for the step, detached
    partner: Tensor | None = None  # (B,) int64: of a pair's chosen half the row of its rejected one; -1 elsewhere

    def __post_init__(self) -> None:
        """Refuse token fields of different lengths."""
        if not len(self.hidden) == len(self.labels) == len(self.row):
            lengths = len(self.hidden), len(self.labels), len(self.row)
            raise ValueError(f"hidden, labels and row must have one entry per token, not {lengths}")

    @cached_property
    def batch(self) -> int:
        """B, the number of sequences."""
        if self.size is not None:
            return self.size
        return int(self.row.max()) + 1 if len(self.row) else 0

    @cached_property
    def lengths(self) -> Tensor:
        """Response tokens of each sequence, (B,), int64."""
        ones = torch.ones_like(self.row)
        return self.row.new_zeros(self.batch).index_add(0, self.row, ones)

    @cached_property
    def logps(self) -> Tensor:
        """log Q(y) of each token, (N,), nats, <= 0."""
        return ops.token_logps(self.hidden, self.labels, self._head)

    @cached_property
    def emd_bound(self) -> Tensor:
        """||e_y - m||^2 of each token, (N,), in [0, 4]; m is expected_embedding (Eq. 5)."""
        return ops.token_emd_bound(self.hidden, self.labels, self._head, self._embedding)

    @cached_property
    def emd(self) -> Tensor:
        """1 - e_y.m of each token, (N,), in [0, 2]: the exact earth mover's distance to a one-hot target."""
        return ops.token_emd(self.hidden, self.labels, self._head, self._embedding)

    @cached_property
    def expected_embedding(self) -> Tensor:
        """m = sum_w Q(w) e_w of each token, (N, E), of length <= 1."""
        return ops.expected_embedding(self.hidden, self._head, self._embedding)

    def sum_over_response(self, x: Tensor) -> Tensor:
        """Sums (B,) of one number per token (N,), in float32 at least."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return x.new_zeros(self.batch).index_add(0, self.row, x)

    def mean_over_response(self, x: Tensor) -> Tensor:
        """Means (B,) of one number per token (N,), in float32 at least; 0 for a sequence without tokens."""
        return self.sum_over_response(x) / self.lengths.clamp(min=1)

    def over_response(self, x: Tensor, reduction: Reduction) -> Tensor:
        """The sums or the means (B,) of one number per token (N,)."""
        if reduction == "sum":
            return self.sum_over_response(x)
        if reduction == "mean":
            return self.mean_over_response(x)
        raise UserError(f"a loss's reduction is {reduction!r}; set it to 'sum' or 'mean'")

    @cached_property
    def _head(self) -> Head:
        return self.head if isinstance(self.head, Head) else Head(self.head)

    @cached_property
    def _embedding(self) -> TokenEmbedding:
        if self.embedding is None:
            raise ValueError("this loss compares tokens by meaning: give LossInputs an embedding")
        if isinstance(self.embedding, TokenEmbedding):
            return self.embedding
        return TokenEmbedding.from_weight(self.embedding)
