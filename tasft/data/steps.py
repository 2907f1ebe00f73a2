"""The optimizer-step batch: what it holds depends on (seed, epoch, step) alone.

How it is cut into micro-batches and dealt to ranks changes speed, never the numbers.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tasft.data.tokenize import Tokenized

Weigh = Callable[[Sequence[int], Sequence[bool]], list[float]]  # response lengths, toxic tags -> weight of each example


@dataclass(frozen=True)
class Weighted:
    """One example of a step batch with its weight in the step's loss, and its place in the batch."""

    tokens: Tokenized
    weight: float
    index: int


@dataclass(frozen=True)
class StepBatch:
    """Everything that one optimizer step trains on, in order."""

    epoch: int
    step: int  # counted over the whole run, from 0
    examples: list[Weighted]


@dataclass
class StepBatches:
    """An endless walk made finite: `epochs` seeded permutations of the examples, cut into step batches.

    The last, short batch of an epoch is kept. Iteration starts at `start`, which a checkpoint restores.
    """

    examples: Sequence[Tokenized]
    batch_size: int
    epochs: int
    seed: int
    weigh: Weigh
    start: int = 0
    _kept: tuple[int, list[int]] = field(default=(-1, []), init=False, repr=False)  # the epoch at hand and its order

    @property
    def steps_per_epoch(self) -> int:
        """Number of step batches of one epoch."""
        return -(-len(self.examples) // self.batch_size)

    def __len__(self) -> int:
        return self.steps_per_epoch * self.epochs

    def __iter__(self) -> Iterator[StepBatch]:
        for step in range(self.start, len(self)):
            yield self.batch(step)

    def batch(self, step: int) -> StepBatch:
        """The batch of `step`, whichever were made before."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = self._order(epoch)[within * self.batch_size : (within + 1) * self.batch_size]
        taken = [self.examples[i] for i in order]
        weights = self.weigh([t.response_length for t in taken], [t.toxic for t in taken])
        weighted = [Weighted(t, w, i) for i, (t, w) in enumerate(zip(taken, weights, strict=True))]
        return StepBatch(epoch, step, weighted)

    def _order(self, epoch: int) -> list[int]:
        if self._kept[0] != epoch:
            order = list(range(len(self.examples)))
            random.Random(f"{self.seed} epoch {epoch}").shuffle(order)
            self._kept = (epoch, order)
        return self._kept[1]


def rank_share(examples: Sequence[Weighted], rank: int, world_size: int) -> list[Weighted]:
    """The examples of `rank`: dealt longest first to the rank with the fewest tokens, so that ranks finish together."""
    shares: list[list[Weighted]] = [[] for _ in range(world_size)]
    load = [0] * world_size
    for each in sorted(examples, key=lambda e: (-len(e.tokens.input_ids), e.index)):
        lightest = load.index(min(load))
        shares[lightest].append(each)
        load[lightest] += len(each.tokens.input_ids)
    return sorted(shares[rank], key=lambda e: e.index)


def micro_batches(examples: Sequence[Weighted], max_tokens: int, packing: bool) -> list[list[Weighted]]:
    """`examples` sorted by length and cut so that no micro-batch holds more than `max_tokens` tokens, padding counted.

    An example longer than that stands alone.
    """
    cut: list[list[Weighted]] = []
    tokens = 0
    for each in sorted(examples, key=lambda e: (len(e.tokens.input_ids), e.index)):
        length = len(each.tokens.input_ids)
        # sorted, so `length` is what every row of a padded micro-batch is padded to
        size = tokens + length if packing else length * (len(cut[-1]) + 1 if cut else 1)
        if not cut or size > max_tokens:
            cut.append([])
            tokens = 0
        cut[-1].append(each)
        tokens += length
    return cut


@dataclass(frozen=True)
class MicroBatch:
    """Tensors of one forward pass: M rows of L tokens (one row where packed) hold B examples with N response tokens.

    `at` and `labels` are aligned: the hidden state at flat position `at[i]` predicts `labels[i]`. Nothing else shifts.
    """

    input_ids: Tensor  # (M, L) int64
    position_ids: Tensor  # (M, L) int64
    attention_mask: Tensor | None  # (M, L) bool; None where packed: positions that restart say where an example starts
    at: Tensor  # (N,) int64, into the M * L positions
    labels: Tensor  # (N,) int64
    row: Tensor  # (N,) int64, the example each token belongs to
    toxic: Tensor  # (B,) bool
    weights: Tensor  # (B,) float32, in the loss of the whole step
    spans: list[tuple[int, int, int]]  # of each example: flat start, length, and place in the step batch

    @property
    def tokens(self) -> int:
        """Number of tokens, padding not counted."""
        return sum(length for _, length, _ in self.spans)

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on `device`."""
        moved: dict[str, Any] = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        return MicroBatch(**moved)


def collate(examples: Sequence[Weighted], pad_id: int, packing: bool) -> MicroBatch:
    """Examples as tensors: padded on the right to the longest, or one after the other in a single row.

    Masks come from lengths, never from comparing with `pad_id`: padding and EOS are often one token.
    """
    lengths = [len(e.tokens.input_ids) for e in examples]
    width = sum(lengths) if packing else max(lengths)
    starts = [sum(lengths[:i]) for i in range(len(lengths))] if packing else [i * width for i in range(len(lengths))]
    rows = 1 if packing else len(examples)
    ids = torch.full((rows * width,), pad_id, dtype=torch.int64)
    positions = torch.zeros(rows * width, dtype=torch.int64)
    real = torch.zeros(rows * width, dtype=torch.bool)
    at, labels, row = [], [], []
    for i, (start, length, each) in enumerate(zip(starts, lengths, examples, strict=True)):
        tokens = torch.tensor(each.tokens.input_ids)
        ids[start : start + length] = tokens
        positions[start : start + length] = torch.arange(length)
        real[start : start + length] = True
        first = length - each.tokens.response_length
        at.append(torch.arange(start + first - 1, start + length - 1))
        labels.append(tokens[first:])
        row.append(torch.full((length - first,), i))
    return MicroBatch(
        input_ids=ids.view(rows, width),
        position_ids=positions.view(rows, width),
        attention_mask=None if packing else real.view(rows, width),
        at=torch.cat(at),
        labels=torch.cat(labels),
        row=torch.cat(row),
        toxic=torch.tensor([e.tokens.toxic for e in examples]),
        weights=torch.tensor([e.weight for e in examples], dtype=torch.float32),
        spans=[(start, length, e.index) for start, length, e in zip(starts, lengths, examples, strict=True)],
    )
