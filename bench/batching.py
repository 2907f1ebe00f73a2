"""Real tokens per CPU-second of the ways to cut a step into micro-batches, over random padded micro-batches of 3.

Lengths are Alpaca-like (rig.alpaca_like). Only real tokens count: padding costs time.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from bench import rig
from bench.rows import row, time_ratios
from tasft.data.steps import MicroBatch, Weighted, collate, micro_batches
from tasft.train.module import FineTuning

SHAPE = rig.Shape(vocabulary=8000, width=512, layers=2, heads=8)
QUICK = rig.Shape(vocabulary=4000, width=256, layers=2, heads=4)
BUDGET = 1024  # tokens of one micro-batch
LONGEST = 512

SORTED_TARGET = 1.15


def measure(quick: bool = False) -> list[dict[str, Any]]:
    """Rows of bench.rows; ratios are of speeds, so higher is better."""
    if quick:
        return ratios(QUICK, rig.alpaca_like(36), BUDGET, repeats=2)
    return ratios(SHAPE, rig.alpaca_like(96), BUDGET, repeats=3)


def ratios(shape: rig.Shape, lengths: Sequence[int], budget: int, repeats: int) -> list[dict[str, Any]]:
    """The speed of one step's forward and backward passes by way of cutting it."""
    module = rig.fine_tuning(rig.llama(shape), "sft", budget)
    batch = rig.step_batch(rig.examples(lengths, shape.vocabulary), "sft").examples
    threes = [batch[i : i + 3] for i in range(0, len(batch), 3)]  # lengths come in no order
    padded = partial(collate, pad_id=rig.PAD, packing=False)
    packed = partial(collate, pad_id=rig.PAD, packing=True)
    random_threes = "random 3, padded"
    cuts: dict[str, tuple[list[list[Weighted]], Callable[[list[Weighted]], MicroBatch]]] = {
        random_threes: (threes, padded),
        f"sorted, padded, {budget} tokens": (micro_batches(batch, budget, packing=False), padded),
        f"packed, {budget} tokens": (micro_batches(batch, budget, packing=True), packed),
        f"random 3, padded to {LONGEST}": (threes, _padded_to_longest),
    }
    ways = {name: partial(_step, module, cut, made) for name, (cut, made) in cuts.items()}
    times = time_ratios(ways, random_threes, repeats, "batching")
    rows = []
    for name, (cut, made) in cuts.items():
        if name == random_threes:
            continue
        computed = sum(made(part).input_ids.numel() for part in cut)
        target = SORTED_TARGET if name.startswith("sorted") else None
        details = {"micro_batches": len(cut), "real_share_of_positions": sum(lengths) / computed}
        rows.append(row(f"tokens/s, {name}", str(shape), 1 / times[name], random_threes, target, ">=", details=details))
    return rows


def _step(module: FineTuning, cuts: Sequence[list[Weighted]], made: Callable[[list[Weighted]], MicroBatch]) -> None:
    for cut in cuts:
        module.terms(made(cut)).total.backward()
    module.zero_grad()


def _padded_to_longest(cut: list[Weighted]) -> MicroBatch:
    micro = collate(cut, rig.PAD, packing=False)
    assert micro.attention_mask is not None
    rows, width = micro.input_ids.shape
    missing = LONGEST - width

    def pad(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(x, (0, missing), value=rig.PAD)

    fields = vars(micro) | {
        "input_ids": pad(micro.input_ids),
        "position_ids": pad(micro.position_ids),
        "attention_mask": torch.cat([micro.attention_mask, torch.zeros(rows, missing, dtype=torch.bool)], dim=1),
        "at": micro.at // width * LONGEST + micro.at % width,
    }
    return MicroBatch(**fields)
