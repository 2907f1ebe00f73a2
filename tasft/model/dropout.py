"""Dropout whose draws belong to the example: the same whichever micro-batch, row or rank the example is put into."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class Draws:
    """What the next forward pass holds, shared by all layers: flat start, length and seed of each example."""

    spans: list[tuple[int, int, int]] = field(default_factory=list)


class ExampleDropout(nn.Module):
    """Zeroes a share `p` of the features of each token and scales the rest by 1 / (1 - p), in training mode only."""

    def __init__(self, p: float, layer: int, draws: Draws) -> None:
        super().__init__()
        self.p, self.layer, self.draws = p, layer, draws

    def forward(self, x: Tensor) -> Tensor:
        """`x` (..., D) with the mask of the examples that `draws` names; positions of no example become 0."""
        if not self.training or self.p == 0:
            return x
        width = x.shape[-1]
        keep = torch.zeros(x.numel() // width, width, dtype=x.dtype, device=x.device)
        generator = torch.Generator(x.device)
        for start, length, seed in self.draws.spans:
            generator.manual_seed((seed * 4099 + self.layer) % 2**63)  # more layers than that no model has
            keep[start : start + length].bernoulli_(1 - self.p, generator=generator)
        return x * keep.view_as(x).div_(1 - self.p)


def with_example_dropout(model: nn.Module) -> Draws:
    """Replaces the dropout in front of every adapter of `model`, once; what they share."""
    for module in model.modules():
        if isinstance(module, ExampleDropout):
            return module.draws
    draws = Draws()
    named = [getattr(module, "lora_dropout", None) for module in model.modules()]
    for layer, dropouts in enumerate(d for d in named if isinstance(d, nn.ModuleDict)):
        for name, dropout in dropouts.items():
            if isinstance(dropout, nn.Dropout):
                dropouts[name] = ExampleDropout(dropout.p, layer, draws)
    return draws
