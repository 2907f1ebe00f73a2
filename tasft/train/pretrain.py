"""Train a base model from scratch on texts: next-token prediction, every weight, no padding worth mentioning."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import LlamaForCausalLM

from tasft.data.steps import Weighted, collate
from tasft.data.tokenize import Tokenized
from tasft.loss.ops import token_logps
from tasft.progress import Progress
from tasft.schema import Scratch
from tasft.train.head import split
from tasft.train.schedule import Schedule, rate

WINDOW = 50  # batches whose texts are sorted by length together


def pretrain(
    model: LlamaForCausalLM, tokenizer: Any, texts: Sequence[str], shape: Scratch, device: torch.device
) -> float:
    """Train `model` in place on every text; the mean loss, in nats per token, over the last tenth of the steps."""
    documents = [
        Tokenized(tuple([*ids, tokenizer.eos_token_id][: shape.max_positions]), 1, False)
        for ids in tokenizer(list(texts), verbose=False)["input_ids"]
    ]
    model.to(device).train()
    parts = split(model)
    batches = [
        batch for epoch in range(shape.epochs) for batch in _batches(documents, shape.batch_size, shape.seed + epoch)
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=shape.lr, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = Schedule("cosine", len(batches) // 20, len(batches), floor=0.05)
    scheduler = LambdaLR(optimizer, lambda step: rate(schedule, step))
    losses = []
    bar = Progress(len(batches), "base model", "step")
    for batch in batches:
        micro = collate([Weighted(d, 1.0, i) for i, d in enumerate(batch)], tokenizer.pad_token_id, packing=False)
        micro = micro.to(device)
        hidden = parts.hidden(micro.input_ids, micro.position_ids, micro.attention_mask).flatten(0, 1)[micro.at]
        loss = -token_logps(hidden, micro.labels, parts.head).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        losses.append(float(loss.detach()))
        bar.advance(1, f"loss {losses[-1]:.3f}")
    bar.close()
    model.eval()
    last = losses[-max(len(losses) // 10, 1) :]
    return sum(last) / len(last)


def _batches(documents: Sequence[Tokenized], size: int, seed: int) -> list[list[Tokenized]]:
    """Seeded batches of like lengths in random order."""
    rng = random.Random(seed)
    order = list(documents)
    rng.shuffle(order)
    batches = []
    for start in range(0, len(order), size * WINDOW):
        window = sorted(order[start : start + size * WINDOW], key=lambda d: len(d.input_ids))
        batches += [window[i : i + size] for i in range(0, len(window), size)]
    rng.shuffle(batches)
    return batches
