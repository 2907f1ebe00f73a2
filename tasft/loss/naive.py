"""The fused values again for tests, one plain formula each: (N, V) at once, in the dtype of the inputs."""

import torch
from torch import Tensor

from tasft.loss.vocabulary import Head


def logits(hidden: Tensor, head: Head) -> Tensor:
    """Logits (N, V)."""
    u = head.scale * (hidden @ head.weight.T + (0 if head.bias is None else head.bias))
    return u if head.softcap is None else head.softcap * torch.tanh(u / head.softcap)


def token_logps(hidden: Tensor, labels: Tensor, head: Head) -> Tensor:
    """log q(y), (N,), nats."""
    return logits(hidden, head).log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1)


def expected_embedding(hidden: Tensor, head: Head, embedding: Tensor) -> Tensor:
    """m = sum_w q_w e_w, (N, E), for raw embeddings (V, E)."""
    return logits(hidden, head).softmax(-1) @ torch.nn.functional.normalize(embedding, dim=-1)


def token_emd_bound(hidden: Tensor, labels: Tensor, head: Head, embedding: Tensor) -> Tensor:
    """||e_y - m||^2, (N,)."""
    e_y = torch.nn.functional.normalize(embedding[labels], dim=-1)
    return (e_y - expected_embedding(hidden, head, embedding)).square().sum(-1)


def token_emd(hidden: Tensor, labels: Tensor, head: Head, embedding: Tensor) -> Tensor:
    """1 - e_y.m, (N,)."""
    e_y = torch.nn.functional.normalize(embedding[labels], dim=-1)
    return 1 - (e_y * expected_embedding(hidden, head, embedding)).sum(-1)


def nlcl(logps: Tensor) -> Tensor:
    """-log(1 - p) of one sequence, (), p the geometric mean of its tokens' probabilities; logps (T,)."""
    return -torch.log1p(-logps.mean().exp())
