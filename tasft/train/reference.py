"""Log-probs under the frozen base model, which is the tuned one with its adapter switched off."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from peft import PeftModel
from torch import Tensor

from tasft.data.steps import MicroBatch, Weighted, collate, micro_batches
from tasft.data.tokenize import Tokenized
from tasft.loss import ops
from tasft.progress import Progress
from tasft.result.rows import writing
from tasft.train.head import SplitModel


def response_logps(parts: SplitModel, micro: MicroBatch) -> Tensor:
    """log Q(y) of each response token of the micro-batch (N,), nats."""
    hidden = parts.hidden(micro.input_ids, micro.position_ids, micro.attention_mask).flatten(0, 1)
    return ops.token_logps(hidden.index_select(0, micro.at), micro.labels, parts.head)


@torch.no_grad()
def base_logps(model: PeftModel, parts: SplitModel, micro: MicroBatch) -> Tensor:
    """The same under the base model, without any dropout; holds no more than its (N,) numbers."""
    training = model.training
    model.eval()
    with model.disable_adapter():
        logps = response_logps(parts, micro)
    model.train(training)
    return logps


def precomputed(
    model: PeftModel,
    parts: SplitModel,
    rows: Sequence[Tokenized],
    max_tokens: int,
    packing: bool,
    pad_id: int,
    folder: Path,
    identity: Sequence[object],
) -> list[Tensor]:
    """base_logps of every example's response tokens, a pair's rejected answer last; from `folder` where they are there.

    `identity` says which base model it is. Other runs of a grid wait for the first.
    """
    content = [[half.input_ids, half.prompt_length] for row in rows for half in row.halves]
    digest = hashlib.sha256(json.dumps([*identity, content], sort_keys=True).encode()).hexdigest()[:16]
    file = folder / f"{digest}.npy"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lengths = [sum(half.response_length for half in row.halves) for row in rows]
    with FileLock(f"{file}.lock"):
        if not file.is_file():
            draft = file.with_suffix(".part.npy")
            np.save(draft, torch.cat(_computed(model, parts, rows, max_tokens, packing, pad_id)).numpy())
            os.replace(draft, file)
        return list(torch.from_numpy(np.load(file)).split(lengths))


def _computed(
    model: PeftModel, parts: SplitModel, rows: Sequence[Tokenized], max_tokens: int, packing: bool, pad_id: int
) -> list[Tensor]:
    found: dict[int, Tensor] = {}
    with Progress(len(rows), "log-probs under the base model", "row") as bar:
        for cut in micro_batches([Weighted(row, 0.0, i) for i, row in enumerate(rows)], max_tokens, packing):
            micro = collate(cut, pad_id, packing).to(parts.head.weight.device)
            logps = base_logps(model, parts, micro).float().cpu()
            parts_of = logps.split([sum(half.response_length for half in each.tokens.halves) for each in cut])
            found |= {each.index: mine for each, mine in zip(cut, parts_of, strict=True)}
            bar.advance(len(cut))
    return [found[i] for i in range(len(rows))]
