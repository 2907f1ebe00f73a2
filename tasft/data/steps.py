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

REJECTED = 2**15  # added to the number of a pair's chosen answer: more than the examples of any step

Weigh = Callable[[Sequence[int], Sequence[bool]], list[float]]  # response lengths, toxic tags -> weight of each example


@dataclass(frozen=True)
class Weighted:
    """One example of a step batch with its weight in the step's loss, and its place in the batch."""

    tokens: Tokenized
    weight: float
    index: int
    reference: Tensor | None = None  # (N_i,) log-probs of its response tokens under the base model, rejected ones last

    @property
    def rows(self) -> int:
        """How many rows of a padded micro-batch it takes: a pair takes two."""
        return len(self.tokens.halves)

    @property
    def longest(self) -> int:
        """Tokens of its longest row."""
        return max(len(half.input_ids) for half in self.tokens.halves)

    @property
    def size(self) -> int:
        """Tokens of all its rows."""
        return sum(len(half.input_ids) for half in self.tokens.halves)


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
    references: Sequence[Tensor] | None = None  # of each example, see Weighted.reference
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
        known = [None] * len(order) if self.references is None else [self.references[i] for i in order]
        weighted = [Weighted(t, w, i, r) for i, (t, w, r) in enumerate(zip(taken, weights, known, strict=True))]
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
    for each in sorted(examples, key=lambda e: (-e.size, e.index)):
        lightest = load.index(min(load))
        shares[lightest].append(each)
        load[lightest] += each.size
    return sorted(shares[rank], key=lambda e: e.index)


def micro_batches(examples: Sequence[Weighted], max_tokens: int, packing: bool) -> list[list[Weighted]]:
    """`examples` sorted by length and cut so that no micro-batch holds more than `max_tokens` tokens, padding counted.

    An example longer than that stands alone; a pair stays together.
    """
    cut: list[list[Weighted]] = []
    tokens = rows = 0
    for each in sorted(examples, key=lambda e: (e.longest, e.index)):
        # sorted, so its longest row is what every row of a padded micro-batch is padded to
        size = tokens + each.size if packing else each.longest * (rows + each.rows)
        if not cut or size > max_tokens:
            cut.append([])
            tokens = rows = 0
        cut[-1].append(each)
        tokens, rows = tokens + each.size, rows + each.rows
    return cut


@dataclass(frozen=True)
class MicroBatch:
    """Tensors of one forward pass: M rows of L tokens (one row where packed) hold B answers with N response tokens.

    An example is one answer, a pair two: the chosen one, which carries the weight, and after it the rejected one.

    `at` and `labels` are aligned: the hidden state at flat position `at[i]` predicts `labels[i]`. Nothing else shifts.
    """

    input_ids: Tensor  # (M, L) int64
    position_ids: Tensor  # (M, L) int64
    attention_mask: Tensor | None  # (M, L) bool; None where packed: positions that restart say where an example starts
    at: Tensor  # (N,) int64, into the M * L positions
    labels: Tensor  # (N,) int64
    row: Tensor  # (N,) int64, the answer each token belongs to
    toxic: Tensor  # (B,) bool
    weights: Tensor  # (B,) float32, in the loss of the whole step
    partner: Tensor  # (B,) int64: of a chosen answer the rejected one; -1 elsewhere
    reference: Tensor | None  # (N,) log-probs under the base model, where they are known
    spans: list[tuple[int, int, int]]  # of each answer: flat start, length, and a number of its own in the step batch

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
    answers = [(half, each.weight * (place == 0), each.index + place * REJECTED)
               for each in examples for place, half in enumerate(each.tokens.halves)]  # fmt: skip
    lengths = [len(tokens.input_ids) for tokens, _, _ in answers]
    width = sum(lengths) if packing else max(lengths)
    starts = [sum(lengths[:i]) for i in range(len(lengths))] if packing else [i * width for i in range(len(lengths))]
    rows = 1 if packing else len(answers)
    ids = torch.full((rows * width,), pad_id, dtype=torch.int64)
    positions = torch.zeros(rows * width, dtype=torch.int64)
    real = torch.zeros(rows * width, dtype=torch.bool)
    at, labels, row = [], [], []
    for i, (start, length, (answer, _, _)) in enumerate(zip(starts, lengths, answers, strict=True)):
        tokens = torch.tensor(answer.input_ids)
        ids[start : start + length] = tokens
        positions[start : start + length] = torch.arange(length)
        real[start : start + length] = True
        first = length - answer.response_length
        at.append(torch.arange(start + first - 1, start + length - 1))
        labels.append(tokens[first:])
        row.append(torch.full((length - first,), i))
    known = [each.reference for each in examples if each.reference is not None]
    return MicroBatch(
        input_ids=ids.view(rows, width),
        position_ids=positions.view(rows, width),
        attention_mask=None if packing else real.view(rows, width),
        at=torch.cat(at),
        labels=torch.cat(labels),
        row=torch.cat(row),
        toxic=torch.tensor([tokens.toxic for tokens, _, _ in answers]),
        weights=torch.tensor([weight for _, weight, _ in answers], dtype=torch.float32),
        partner=torch.tensor([-1 if tokens.rejected is None else i + 1 for i, (tokens, _, _) in enumerate(answers)]),
        reference=torch.cat(known) if len(known) == len(examples) else None,
        spans=[(start, length, number) for start, length, (_, _, number) in zip(starts, lengths, answers, strict=True)],
    )


def mismatched(examples: Sequence[Weighted]) -> list[Weighted]:
    """Each prompt with the response to the next one, the last with the first, each weighing 1 / len(examples).

    Cut at the length of the longest example, so that nothing is longer than what is trained on.
    """
    longest = max(each.longest for each in examples)
    result = []
    for each, following in zip(examples, [*examples[1:], examples[0]], strict=True):
        prompt, answer = each.tokens, following.tokens
        ids = (*prompt.input_ids[: prompt.prompt_length], *answer.input_ids[answer.prompt_length :])[:longest]
        result.append(Weighted(Tokenized(ids, prompt.prompt_length, prompt.toxic), 1 / len(examples), each.index))
    return result
