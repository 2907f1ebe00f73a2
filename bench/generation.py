"""CPU time of answers asked one by one over that of batches of 32, and whether both are the same, in float32.

Random Llamas under an adapter. Prompts have 40 to 80 tokens, as those of benchmarks in STL's template have; answers end
where the model says one of many stop tokens, so that their lengths differ and rows of a batch end one after the other.
Beside it the ceiling: the model's matrices times 32 tokens together, over the same one by one. Decoding stays below it:
attention and what Python does at each step cost as much for a row of a batch as for a prompt alone, or are paid for
every step that the longest answer of a batch takes.
"""

import random
from functools import partial
from typing import Any

import torch

from bench import rig
from bench.rows import cpu_ratios, row
from tasft.evaluate.generating import Answer, generate
from tasft.model.scratch import train_tokenizer
from tasft.prompt import prompt_format

TINY_WORLD = rig.Shape(vocabulary=2048, width=96, layers=3, heads=4)  # about conf/model/tiny.yaml
LARGER = rig.Shape(vocabulary=8000, width=512, layers=4, heads=8)
BATCH = 32
LIMIT = 128  # tokens of an answer
STOPS = 64  # of so many tokens one ends the answer

BATCHED_TARGET = 4.0


def measure(quick: bool = False) -> list[dict[str, Any]]:
    """Rows of bench.rows; the ratio is of speeds, so higher is better."""
    rows = batched(TINY_WORLD, 32 if quick else 64, LIMIT, BATCHED_TARGET, repeats=1 if quick else 3)
    return rows if quick else rows + batched(LARGER, 32, LIMIT, BATCHED_TARGET, repeats=1)


@torch.no_grad()
def ceiling(model: torch.nn.Module) -> float:
    """CPU time of the products with all linear layers of `model` for one token after another over that for a batch.

    The weights of a whole model are read once for a token, from where they are: most do not fit the CPU's cache.
    """
    layers = [each for each in model.modules() if type(each) is torch.nn.Linear]
    tokens = {each.in_features: torch.randn(BATCH, each.in_features) for each in layers}

    def products(rows: int) -> None:
        for start in range(0, BATCH, rows):
            for each in layers:
                torch.nn.functional.linear(tokens[each.in_features][start : start + rows], each.weight)

    ways = {"together": partial(products, BATCH), "one by one": partial(products, 1)}
    return cpu_ratios(ways, "together", 5, "matrix products")["one by one"]


def batched(shape: rig.Shape, count: int, limit: int, target: float | None, repeats: int) -> list[dict[str, Any]]:
    """Batches of 32 over one by one, and the share of the answers that are the same."""
    words = [f"word{i}" for i in range(400)]
    tokenizer = train_tokenizer(words, shape.vocabulary)
    rng = random.Random(0)
    prompts = [" ".join(rng.choices(words, k=rng.randint(3, 16))) for _ in range(count)]
    model = rig.llama(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # awake: answers depend on the prompt and do not repeat one token
    model.generation_config.eos_token_id = list(range(STOPS // 2, shape.vocabulary, STOPS))
    format = prompt_format("short", tokenizer)
    ask = partial(generate, model, tokenizer, prompts, format, limit)
    said: dict[str, list[Answer]] = {}

    def keep(name: str, batch_size: int) -> None:
        said[name] = ask(batch_size)

    ways = {"batched": partial(keep, "batched", BATCH), "one by one": partial(keep, "one by one", 1)}
    ratio = cpu_ratios(ways, "batched", repeats, "generation")["one by one"]
    same = sum(a == b for a, b in zip(said["batched"], said["one by one"], strict=True)) / count
    details = {
        "answers": count,
        "limit": limit,
        "cut_at_limit": sum(answer.truncated for answer in said["batched"]),
        "different": len({answer.text for answer in said["batched"]}),
    }
    return [
        row(f"matrix products of {BATCH} tokens", str(shape), ceiling(model), "one by one", None, ">="),
        row(f"answers/s, batches of {BATCH}", str(shape), ratio, "one by one", target, ">=", details=details),
        row("answers that are the same", str(shape), same, "all answers", 1.0, ">="),
    ]
