"""Hidden states of whole examples under a causal language model: one vector for each example and layer."""

import shutil
import tempfile
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tasft.errors import UserError
from tasft.progress import Progress

IN_MEMORY = 2**30  # bytes; more than this goes to a temporary file


class Tokens(Protocol):
    """What is needed of a tokenized example: its tokens, of which those from `prompt_length` on are the response."""

    @property
    def input_ids(self) -> tuple[int, ...]:
        """All tokens."""

    @property
    def prompt_length(self) -> int:
        """Number of tokens before the response."""


def layer_count(model: Any) -> int:
    """Number of layers; layer 0 is the embeddings, so hidden states have one more."""
    return int(model.config.get_text_config().num_hidden_layers)


@torch.inference_mode()
def hidden_states(
    model: Any,
    examples: Sequence[Tokens],
    position: str,
    max_tokens: int,
    layers: Sequence[int] | None = None,
    in_memory: int = IN_MEMORY,
) -> np.ndarray:
    """Hidden states (layers, N, D), float32, in the examples' order, all layers of a batch from one forward pass.

    `position` is last (the last token), mean (over the response's tokens) or prompt (the prompt's last token). Layer 0
    is the embeddings, the last one is what the head reads. Batches hold at most `max_tokens` tokens, padding counted,
    and change nothing beyond rounding. More than `in_memory` bytes are kept in a temporary file that goes with the
    array. UserError where a layer does not exist, the disk is too small or a value is not finite.
    """
    count = layer_count(model)
    layers = range(count + 1) if layers is None else layers
    for layer in layers:
        if not 0 <= layer <= count:
            raise UserError(f"there is no layer {layer}: this model has layers 0 (its embeddings) to {count}")
    backbone = model.get_decoder()
    width = int(model.config.get_text_config().hidden_size)
    kept = _array((len(layers), len(examples), width), in_memory)
    training = model.training
    model.eval()
    with Progress(len(examples), "hidden states", "row") as bar:
        for batch in _batches([len(e.input_ids) for e in examples], max_tokens):
            ids, mask, start, stop = _padded([examples[i] for i in batch], position, model.device)
            states = backbone(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
            for at, layer in enumerate(layers):
                kept[at, batch] = _mean(states.hidden_states[layer], start, stop).cpu().numpy()
            if not np.isfinite(kept[:, batch]).all():
                raise UserError(f"the hidden states are not finite in {model.dtype}: give another model.dtype")
            bar.advance(len(batch))
    model.train(training)
    return kept


def _array(shape: tuple[int, int, int], in_memory: int) -> np.ndarray:
    size = 4 * int(np.prod(shape))
    if size <= in_memory:
        return np.zeros(shape, np.float32)
    folder = tempfile.gettempdir()
    if shutil.disk_usage(folder).free < size:
        raise UserError(
            f"the hidden states of {shape[0]} layers take {size / 1e9:.1f} GB, more than there is in {folder}:"
            " name one layer (saft.layer=...), or set TMPDIR to a larger disk"
        )
    return np.memmap(tempfile.TemporaryFile(), np.float32, "w+", shape=shape)


def _batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices in batches of like lengths, the longest first, so that a batch that is too large fails at once."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or lengths[batches[-1][0]] * (len(batches[-1]) + 1) > max_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches


def _padded(
    examples: Sequence[Tokens], position: str, device: torch.device
) -> tuple[Tensor, Tensor, list[int], list[int]]:
    """Tokens and mask (b, L), padded on the right; for each example the tokens [start, stop) that count."""
    lengths = [len(e.input_ids) for e in examples]
    response = [max(e.prompt_length, 1) for e in examples]
    start = {"last": [n - 1 for n in lengths], "mean": response, "prompt": [n - 1 for n in response]}[position]
    stop = response if position == "prompt" else lengths
    width = max(lengths)
    # what stands in the padding is never looked at: attention is causal
    ids = torch.tensor([[*e.input_ids] + [0] * (width - len(e.input_ids)) for e in examples], device=device)
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    return ids, mask.long().to(device), start, stop


def _mean(states: Tensor, start: list[int], stop: list[int]) -> Tensor:
    """Means (b, D), float32, of `states` (b, L, D) over the tokens [start, stop) of each row."""
    return torch.stack([row[a:b].float().mean(0) for row, a, b in zip(states, start, stop, strict=True)])
