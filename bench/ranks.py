"""CPU-seconds per token of two processes that share every step (gloo, DDP or FSDP) over those of one.

Each process computes with one thread; the first step is left out. The model fills a core: a random Llama under LoRA,
steps of Alpaca-like lengths with one toxic example in eight, EMD. FSDP gathers every layer for every micro-batch, which
on a CPU is paid in the same seconds as the computing; it has no target.
"""

import json
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from bench import rig
from bench.rows import row
from tasft.data.steps import StepBatches
from tasft.launch import launch
from tasft.prepare import quiet
from tasft.train.fit import Files, fit
from tasft.train.group import Group
from tasft.train.shard import shard

SHAPE = rig.Shape(vocabulary=8000, width=512, layers=4, heads=8)
QUICK = rig.Shape(vocabulary=4000, width=256, layers=2, heads=4)
EXAMPLES = 32  # of one step

TARGET = 1.15


def measure(quick: bool = False) -> list[dict[str, Any]]:
    """Rows of bench.rows."""
    shape, steps, repeats = (QUICK, 4, 1) if quick else (SHAPE, 5, 3)
    targets = {"DDP": TARGET} if quick else {"DDP": TARGET, "FSDP": None}
    ways = {"one": (1, False)} | {name: (2, name == "FSDP") for name in targets}
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in tqdm(range(repeats), desc="ranks", leave=False):
        order = list(ways) if repeat % 2 else list(ways)[::-1]
        seconds = {name: cpu_seconds_per_token(shape, steps, *ways[name]) for name in order}
        for name in ways:
            ratios[name].append(seconds[name] / seconds["one"])
    return [
        row(f"CPU-seconds/token, two processes, {name}", str(shape), median(ratios[name]), "one process", target,
            details={"steps": steps, "examples_per_step": EXAMPLES, "ratios": ratios[name]})
        for name, target in targets.items()
    ]  # fmt: skip


def cpu_seconds_per_token(shape: rig.Shape, steps: int, world: int, sharded: bool) -> float:
    """Of `world` processes together, from the end of the first step to the end of the last."""
    with tempfile.TemporaryDirectory() as folder:
        launch(partial(_train, shape, steps, sharded, Path(folder)), "cpu", world, Path(folder) / "logs", threads=1)
        said = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(world)]
    return sum(each["seconds"] for each in said) / said[0]["tokens"]


def _train(shape: rig.Shape, steps: int, sharded: bool, folder: Path, group: Group, looked: object) -> None:
    quiet()
    rows = rig.examples(rig.alpaca_like(EXAMPLES * steps), shape.vocabulary, range(3, EXAMPLES * steps, 8))
    model = rig.llama(shape)
    if sharded:
        shard(model, "cpu", group.world)
    module = rig.fine_tuning(model, "emd", 1024)
    ends: list[float] = []
    module.on_train_batch_end = lambda *_: ends.append(time.process_time())  # type: ignore[method-assign]
    files = Files(folder, lambda values: None, lambda values: None)
    batches = StepBatches(rows, EXAMPLES, 1, seed=0, weigh=module.objective.weights)
    fit(module, batches, files, "cpu", checkpoint_every=1000, group=group)
    tokens = sum(e.size for step in range(1, steps) for e in batches.batch(step).examples)
    (folder / f"{group.rank}.json").write_text(json.dumps({"seconds": ends[-1] - ends[0], "tokens": tokens}))
