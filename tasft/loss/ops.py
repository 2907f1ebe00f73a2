r"""Values per token that need the whole vocabulary, without ever holding logits for all N tokens.

q = softmax(logits), y the observed token, e_w the unit-norm embeddings, m = sum_w q_w e_w. The slopes are in
the logits z:

    token_logps      log q_y           1[w = y] - q_w
    token_emd_bound  ||e_y - m||^2     q_w (v.e_w - v.m)   with v = -2 (e_y - m)
    token_emd        1 - e_y.m         q_w (e_y.m - e_y.e_w)

Each value depends on one hidden state. So where head and embeddings are frozen, the forward pass runs through
the tokens in chunks, turns each chunk's logits in place into slopes, maps them back to the hidden states, and
keeps that one row of D numbers per token; the backward pass scales the rows by the incoming gradient. Where
head or embeddings are trained, each chunk is checkpointed instead: right for every gradient, but its logits
are made twice.

Values come in float32 at least, whatever the inputs are in, and so do the logits behind the fused ones;
autocast is off inside.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from tasft.loss.vocabulary import Head, TokenEmbedding

# Fewer rows than this and reading the head costs more than multiplying by it.
MIN_ROWS = 128
# Logits in one chunk, where MIN_ROWS allows: 64 MB of float32 on a CPU; more on a GPU, which multiplies 128
# rows by the head in less time than it takes to read it.
CHUNK_ELEMENTS = {"cpu": 2**24, "cuda": 2**26}
# Rows of a low-precision matrix that are widened to float32 at a time where the device has no mixed product.
WIDENED_ROWS = 1024


def token_logps(hidden: Tensor, labels: Tensor, head: Head) -> Tensor:
    """log q(y) of each token, (N,), nats. Exact down to -1e-38 where q(y) rounds to 1."""
    return _per_token(_LOGPS, hidden, labels, head, None)


def token_emd_bound(hidden: Tensor, labels: Tensor, head: Head, embedding: TokenEmbedding) -> Tensor:
    """||e_y - m||^2 of each token, (N,), in [0, 4]: the term of the paper's Eq. 5."""
    return _per_token(_EMD_BOUND, hidden, labels, head, embedding)


def token_emd(hidden: Tensor, labels: Tensor, head: Head, embedding: TokenEmbedding) -> Tensor:
    """1 - e_y.m of each token, (N,), in [0, 2]: the earth mover's distance (Eq. 3, 4) of q from y alone."""
    return _per_token(_EMD, hidden, labels, head, embedding)


def expected_embedding(hidden: Tensor, head: Head, embedding: TokenEmbedding) -> Tensor:
    """m = sum_w q_w e_w of each token, (N, E). Checkpointed: its Jacobian is not one row per token."""
    labels = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)  # not looked at
    with torch.autocast(hidden.device.type, enabled=False):
        return _checkpointed(_mean_formula, hidden, labels, head, embedding)


# Logits (n, V), labels (n,) -> values (n,) or (n, E); differentiable.
Formula = Callable[[Tensor, Tensor, TokenEmbedding | None], Tensor]
# Logits (n, V), spare (n, V), labels (n, 1), embedding, slopes wanted -> values (n,). The logits are
# overwritten: where slopes are wanted, by d value / d logits.
InPlace = Callable[[Tensor, Tensor, Tensor, TokenEmbedding | None, bool], Tensor]


@dataclass(frozen=True)
class _Op:
    in_place: InPlace
    formula: Formula
    needs_spare: bool


def _logps_in_place(z: Tensor, _spare: Tensor, y: Tensor, _embedding: TokenEmbedding | None, slopes: bool) -> Tensor:
    z_y = z.gather(1, y)  # (n, 1)
    # The sum is over the others, not over all: so 1 - q_y survives where it is far below the rounding of q_y.
    z.scatter_(1, y, -torch.inf)
    top = z.amax(1, keepdim=True)
    z.sub_(top).exp_()
    others = z.sum(1, keepdim=True)
    logp = F.logsigmoid(z_y - top - others.log())
    if slopes:
        miss = -torch.expm1(logp)  # 1 - q_y
        z.mul_(-miss / others).scatter_(1, y, miss)
    return logp.squeeze(1)


def _emd_bound_in_place(z: Tensor, spare: Tensor, y: Tensor, embedding: TokenEmbedding | None, slopes: bool) -> Tensor:
    assert embedding is not None
    q = torch.softmax(z, 1, out=spare)
    # 1 / ||w|| goes into the columns here and below: no normalised copy of the matrix.
    mean = _back(torch.mul(q, embedding.inverse_norm, out=z), embedding.weight)  # (n, E)
    difference = embedding.unit(y.squeeze(1)) - mean  # (n, E)
    if slopes:
        v = -2 * difference  # d value / d mean
        along = _onto(v, embedding.weight, out=z)  # v.e_w ||w||
        torch.addcmul(-(v * mean).sum(1, keepdim=True), along, embedding.inverse_norm, out=z).mul_(q)
    return difference.square().sum(1)


def _emd_in_place(z: Tensor, spare: Tensor, y: Tensor, embedding: TokenEmbedding | None, slopes: bool) -> Tensor:
    assert embedding is not None
    q = torch.softmax(z, 1, out=spare)
    cosine = _onto(embedding.unit(y.squeeze(1)), embedding.weight, out=z).mul_(embedding.inverse_norm)
    # bmm, as vecdot would make an (n, V) product first.
    expected = torch.bmm(q[:, None], cosine[:, :, None]).view(-1, 1)  # e_y.m
    if slopes:
        torch.sub(expected, cosine, out=z).mul_(q)
    return 1 - expected.squeeze(1)


def _logps_formula(z: Tensor, labels: Tensor, _embedding: TokenEmbedding | None) -> Tensor:
    y = labels[:, None]
    others = z.scatter(1, y, -torch.inf).logsumexp(1)
    return F.logsigmoid(z.gather(1, y).squeeze(1) - others)


def _emd_bound_formula(z: Tensor, labels: Tensor, embedding: TokenEmbedding | None) -> Tensor:
    assert embedding is not None
    return (embedding.unit(labels) - embedding.mean(z.softmax(1))).square().sum(1)


def _emd_formula(z: Tensor, labels: Tensor, embedding: TokenEmbedding | None) -> Tensor:
    assert embedding is not None
    return 1 - (embedding.unit(labels) * embedding.mean(z.softmax(1))).sum(1)


def _mean_formula(z: Tensor, _labels: Tensor, embedding: TokenEmbedding | None) -> Tensor:
    assert embedding is not None
    return embedding.mean(z.softmax(1))


_LOGPS = _Op(_logps_in_place, _logps_formula, needs_spare=False)
_EMD_BOUND = _Op(_emd_bound_in_place, _emd_bound_formula, needs_spare=True)
_EMD = _Op(_emd_in_place, _emd_formula, needs_spare=True)


def _per_token(op: _Op, hidden: Tensor, labels: Tensor, head: Head, embedding: TokenEmbedding | None) -> Tensor:
    trained = head.trained or (embedding is not None and embedding.trained)
    with torch.autocast(hidden.device.type, enabled=False):
        if not torch.is_grad_enabled() or not (trained or hidden.requires_grad):
            return _run(op, hidden, labels, head, embedding, None)
        if trained:
            return _checkpointed(op.formula, hidden, labels, head, embedding)
        return _Fused.apply(op, hidden, labels, head, embedding)


class _Fused(torch.autograd.Function):
    """Values per token (N,), with their Jacobian (N, D) made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, op: _Op, hidden: Tensor, labels: Tensor, head: Head, embedding: TokenEmbedding | None
    ) -> Tensor:
        jacobian = torch.empty_like(hidden)
        values = _run(op, hidden, labels, head, embedding, jacobian)
        ctx.save_for_backward(jacobian)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None, None, None]:
        (jacobian,) = ctx.saved_tensors
        # In grad's precision: NLCL's slope near p = 1 is out of float16's range, the product is not.
        return None, (jacobian * grad[:, None]).to(jacobian.dtype), None, None, None


@torch.no_grad()
def _run(
    op: _Op,
    hidden: Tensor,
    labels: Tensor,
    head: Head,
    embedding: TokenEmbedding | None,
    jacobian: Tensor | None,
) -> Tensor:
    """The values (N,), chunk by chunk in reused buffers; fills jacobian (N, D) where one is given."""
    vocabulary, precision = len(head.weight), _precision(hidden, head)
    chunks = list(_chunks(hidden, vocabulary))
    longest = max(len(hidden[rows]) for rows in chunks)
    wants_slopes = jacobian is not None
    buffer, spare, flatness = (
        hidden.new_empty((longest, vocabulary) if needed else (0, 0), dtype=precision)
        for needed in (True, op.needs_spare, wants_slopes and head.softcap is not None)
    )
    values = hidden.new_empty(len(hidden), dtype=precision)
    for rows in chunks:
        n = len(hidden[rows])
        z = _onto(hidden[rows], head.weight, out=buffer[:n])  # (n, V)
        if head.bias is not None:
            z.add_(head.bias)
        if head.scale != 1.0:
            z.mul_(head.scale)
        if head.softcap is not None:
            z.div_(head.softcap).tanh_()
            if wants_slopes:
                torch.square(z, out=flatness[:n])  # 1 - slope of the cap
            z.mul_(head.softcap)
        values[rows] = op.in_place(z, spare[:n], labels[rows, None], embedding, wants_slopes)
        if jacobian is not None:
            if head.softcap is not None:
                z.mul_(flatness[:n].neg_().add_(1))
            jacobian[rows] = _back(z, head.weight).mul_(head.scale)
    return values


def _checkpointed(
    formula: Formula, hidden: Tensor, labels: Tensor, head: Head, embedding: TokenEmbedding | None
) -> Tensor:
    """The formula's values (N, ...), each chunk's logits made again in the backward pass."""

    def one_chunk(hidden: Tensor, labels: Tensor) -> Tensor:
        return formula(head.logits(hidden), labels, embedding)

    parts = [
        checkpoint(one_chunk, hidden[rows], labels[rows], use_reentrant=False, preserve_rng_state=False)
        for rows in _chunks(hidden, len(head.weight))
    ]
    return torch.cat(parts)


def _chunks(hidden: Tensor, vocabulary: int) -> Iterator[slice]:
    """Equal runs of the N rows, MIN_ROWS at least where there are as many; one empty run for N = 0."""
    rows = len(hidden)
    elements = CHUNK_ELEMENTS.get(hidden.device.type, CHUNK_ELEMENTS["cpu"])
    # Equal, as a ragged tail would read the whole head for a few rows.
    count = max(1, min(rows // MIN_ROWS, -(-rows * vocabulary // elements)))
    for i in range(count):
        yield slice(rows * i // count, rows * (i + 1) // count)


def _precision(hidden: Tensor, head: Head) -> torch.dtype:
    """The dtype of logits and values: float32, or float64 where the inputs are."""
    return torch.promote_types(torch.promote_types(hidden.dtype, head.weight.dtype), torch.float32)


def _onto(x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """x weight^T for x (n, D) and weight (V, D), summed up and left in the precision of out (n, V)."""
    if weight.dtype == out.dtype:
        return torch.mm(x.to(out.dtype), weight.T, out=out)
    if weight.is_cuda:
        return torch.mm(x.to(weight.dtype), weight.T, out_dtype=out.dtype, out=out)
    x = x.to(out.dtype)
    for first in range(0, len(weight), WIDENED_ROWS):
        some = slice(first, first + WIDENED_ROWS)
        torch.mm(x, weight[some].to(out.dtype).T, out=out[:, some])
    return out


def _back(x: Tensor, weight: Tensor) -> Tensor:
    """x weight for x (n, V) and weight (V, D), summed up and left in the precision of x: (n, D)."""
    if weight.dtype == x.dtype:
        return x @ weight
    if weight.is_cuda:
        return torch.mm(x.to(weight.dtype), weight, out_dtype=x.dtype)
    out = x.new_zeros(len(x), weight.shape[1])
    for first in range(0, len(weight), WIDENED_ROWS):
        some = slice(first, first + WIDENED_ROWS)
        out.addmm_(x[:, some], weight[some].to(x.dtype))
    return out
