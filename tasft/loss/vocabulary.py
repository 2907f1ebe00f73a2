"""The two matrices with one row per token: the output head (logits) and the embeddings (where tokens lie)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Head:
    """The output head: logits = cap(scale * (hidden W^T + bias)), with cap(u) = softcap * tanh(u / softcap).

    Llama, Mistral, Qwen: the weight alone. Cohere: scale = logit_scale. Granite: scale = 1 / logits_scaling.
    Gemma 2: softcap = final_logit_softcapping. A bias, where there is one, belongs to the linear layer and
    is scaled with it.
    """

    weight: Tensor  # (V, D)
    bias: Tensor | None = None  # (V,)
    scale: float = 1.0
    softcap: float | None = None

    @property
    def trained(self) -> bool:
        """Whether a gradient of the head itself is wanted."""
        return self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (n, V) of hidden states (n, D), at least float32, differentiable in everything."""
        product = hidden.to(self.weight.dtype) @ self.weight.T
        logits = product.to(torch.promote_types(product.dtype, torch.float32))
        if self.bias is not None:
            logits = logits + self.bias
        logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


@dataclass(frozen=True)
class TokenEmbedding:
    """Token embeddings and what scales each to unit length; e_w below is weight[w] * inverse_norm[w].

    Build it once for a frozen matrix, anew for each step for a trained one: the norms are part of the graph.
    """

    weight: Tensor  # (V, E)
    inverse_norm: Tensor  # (V,) at least float32; 0 for a row of zeros, which then stays zero

    @classmethod
    def from_weight(cls, weight: Tensor) -> "TokenEmbedding":
        """Embeddings with the norms of their rows; the gradient goes through the norms too."""
        precision = torch.promote_types(weight.dtype, torch.float32)
        norm = torch.linalg.vector_norm(weight, dim=1, dtype=precision)
        smallest = torch.finfo(precision).tiny ** 0.5
        return cls(weight, norm.clamp_min(smallest).reciprocal() * (norm > smallest))

    @property
    def trained(self) -> bool:
        """Whether a gradient of the embeddings themselves is wanted."""
        return self.weight.requires_grad

    def unit(self, tokens: Tensor) -> Tensor:
        """The rows e_w of the tokens (n,): (n, E), in the precision of inverse_norm."""
        return self.weight[tokens] * self.inverse_norm[tokens, None]

    def mean(self, q: Tensor) -> Tensor:
        """The rows of sum_w q_w e_w for probabilities (n, V): (n, E), differentiable in everything."""
        return ((q * self.inverse_norm).to(self.weight.dtype) @ self.weight).to(q.dtype)
