"""Time of answers asked one by one over that of batches of 32, and whether both are the same, in float32.

CPU time; on a GPU time, and of Llama-7B's shape in bfloat16, too.

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
from bench.gpu import LLAMA_7B
from bench.rows import row, seconds_on, time_ratios
from tasft.evaluate.generating import Answer, generate
from tasft.model.scratch import train_tokenizer
from tasft.prompt import prompt_format

TINY_WORLD = rig.Shape(vocabulary=2048, width=96, layers=3, heads=4)  # about conf/model/tiny.yaml
LARGER = rig.Shape(vocabulary=8000, width=512, layers=4, heads=8)
WORDS = [f"word{i}" for i in range(400)]
BATCH = 32
LIMIT = 128  # tokens of an answer
STOPS = 64  # of so many tokens one ends the answer

BATCHED_TARGET = 4.0


def measure(quick: bool = False) -> list[dict[str, Any]]:
    """Rows of bench.rows; the ratio is of speeds, so higher is better."""
    if torch.cuda.is_available():
        rows = batched(LARGER, 32, LIMIT, BATCHED_TARGET, repeats=1, device="cuda")
        return [*rows, decoding(LLAMA_7B, "cuda", torch.bfloat16, tokens=32 if quick else 64, target=BATCHED_TARGET)]
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
    return time_ratios(ways, "together", 5, "matrix products")["one by one"]


def batched(
    shape: rig.Shape, count: int, limit: int, target: float | None, repeats: int, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Batches of 32 over one by one, and the share of the answers that are the same."""
    tokenizer = train_tokenizer(WORDS, shape.vocabulary)
    prompts = _prompts(count)
    model = rig.llama(shape, device)
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
    ratio = time_ratios(ways, "batched", repeats, "generation", device)["one by one"]
    same = sum(a == b for a, b in zip(said["batched"], said["one by one"], strict=True)) / count
    details = {
        "answers": count,
        "limit": limit,
        "cut_at_limit": sum(answer.truncated for answer in said["batched"]),
        "different": len({answer.text for answer in said["batched"]}),
    }
    best = [row(f"matrix products of {BATCH} tokens", str(shape), ceiling(model), "one by one", None, ">=")]
    return [
        *(best if device == "cpu" else []),
        row(f"answers/s, batches of {BATCH}", str(shape), ratio, "one by one", target, ">=", details=details),
        row("answers that are the same", str(shape), same, "all answers", 1.0, ">="),
    ]


def decoding(shape: rig.Shape, device: str, dtype: torch.dtype, tokens: int, target: float | None) -> dict[str, Any]:
    """Answers of `tokens` tokens a second in a batch of 32 over those of one prompt alone; ms a token are details."""
    tokenizer = train_tokenizer(WORDS, shape.vocabulary)
    model = rig.llama(shape, device, dtype)
    model.generation_config.eos_token_id = shape.vocabulary - 1  # hardly ever said
    format = prompt_format("short", tokenizer)
    took = {}
    for count in (BATCH, 1):
        ask = partial(generate, model, tokenizer, _prompts(count), format, tokens, count)
        ask()  # kernels are chosen
        took[count] = seconds_on(device, ask)
    details = {f"ms_a_token_{count}": 1000 * seconds / tokens for count, seconds in took.items()}
    what = f"answers/s, a batch of {BATCH}: {details[f'ms_a_token_{BATCH}']:.1f} ms a token"
    return row(what, f"{shape}, {dtype}", BATCH * took[1] / took[BATCH], "one prompt", target, ">=", details)


def _prompts(count: int) -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(3, 16))) for _ in range(count)]
