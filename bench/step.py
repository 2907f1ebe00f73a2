"""CPU time of a training step: mixed objectives over plain SFT, Lightning over a bare loop, full logits over fused.

Random Llamas under LoRA on q_proj and v_proj (r = 8), micro-batches of 3 examples of 256 tokens, 60 % prompt.
"head 39%" is the head's share of a step's FLOPs where logits are made at every position.
"""

import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch.optim import Optimizer
from tqdm import tqdm

from bench import rig
from bench.rows import row, time_ratios
from tasft.data.steps import StepBatch, StepBatches, collate, micro_batches
from tasft.train.fit import Files, fit
from tasft.train.module import FineTuning

LENGTH = 256
MICRO = 3 * LENGTH
HEAVY_HEAD = rig.Shape(vocabulary=8000, width=512, layers=2, heads=8)  # 39 % of FLOPs
LIGHT_HEAD = rig.Shape(vocabulary=2000, width=512, layers=8, heads=8)  # 4 %, a little above Llama-7B's 2 %
QUICK = rig.Shape(vocabulary=4000, width=512, layers=1, heads=8)  # 39 %

# Rows of a step, and which of them are toxic.
EVERY_GROUP = "1 toxic in every 3", 6, (2, 5)  # one in each micro-batch: far more than real data has
PAPER_RATE = "1 toxic in 48", 48, (25,)  # the paper's 300 in 20,300 are 1 in 68

MIXED_TARGET, LIGHTNING_TARGET = 1.08, 1.06
NAIVE_TARGET = 1.0  # full logits take no less


def measure(quick: bool = False) -> list[dict[str, Any]]:
    """Rows of bench.rows, for one shape where quick, for two otherwise."""
    rows = []
    for shape in [QUICK] if quick else [HEAVY_HEAD, LIGHT_HEAD]:
        model = rig.llama(shape)
        rows += mixed(model, shape, *EVERY_GROUP, repeats=9)
        if shape == HEAVY_HEAD:
            rows += mixed(model, shape, *PAPER_RATE, repeats=5)
        rows += referenced(model, shape, repeats=3 if quick else 5)
        rows += naive(model, shape, repeats=3 if quick else 5)
        rows += lightning(model, shape, steps=7 if quick else 12, repeats=3)
    return rows


def mixed(
    model: PeftModel,
    shape: rig.Shape,
    rate: str,
    rows: int,
    toxic: tuple[int, ...],
    *,
    repeats: int,
    length: int = LENGTH,
) -> list[dict[str, Any]]:
    """EMD and NLCL over plain SFT on as many rows of the same lengths."""
    steps = {}
    for loss in ("sft", "emd", "nlcl"):
        made = rig.examples([length] * rows, shape.vocabulary, toxic if loss != "sft" else ())
        module = rig.fine_tuning(model, loss, 3 * length)
        steps[loss] = partial(rig.bare_step, module, rig.optimizer_of(module), rig.step_batch(made, loss))
    found = time_ratios(steps, "sft", repeats, f"mixed, {rate}")
    return [
        row(f"{loss.upper()} step, {rate}", str(shape), found[loss], "plain SFT", MIXED_TARGET)
        for loss in ("emd", "nlcl")
    ]


def referenced(model: PeftModel, shape: rig.Shape, repeats: int, length: int = LENGTH) -> list[dict[str, Any]]:
    """What comparing with the base model costs: NPO (one more forward pass) and KTO (three) over plain SFT.

    Backward under LoRA costs about what forward does, so passes alone come to 1.5 and 2.5; `precomputed` is NPO with
    its reference log-probs made before the training.
    """
    _, rows, toxic = EVERY_GROUP
    steps = {}
    for name, loss in (("sft", "sft"), ("NPO", "npo"), ("NPO, precomputed", "npo"), ("KTO", "kto")):
        made = rig.examples([length] * rows, shape.vocabulary, toxic if loss != "sft" else ())
        module, batch = rig.fine_tuning(model, loss, 3 * length), rig.step_batch(made, loss)
        if name.endswith("precomputed"):
            known = [
                replace(each, reference=torch.full((each.tokens.response_length,), -5.0)) for each in batch.examples
            ]
            batch = replace(batch, examples=known)
        steps[name] = partial(rig.bare_step, module, rig.optimizer_of(module), batch)
    found = time_ratios(steps, "sft", repeats, "reference")
    return [row(f"{name} step", str(shape), found[name], "plain SFT") for name in steps if name != "sft"]


def naive(model: PeftModel, shape: rig.Shape, repeats: int, length: int = LENGTH) -> list[dict[str, Any]]:
    """SFT with logits at every position over SFT with the fused head."""
    batch = rig.step_batch(rig.examples([length] * 6, shape.vocabulary), "sft")
    module = rig.fine_tuning(model, "sft", 3 * length)
    optimizer = rig.optimizer_of(module)
    ways = {
        "fused": partial(rig.bare_step, module, optimizer, batch),
        "full logits": partial(full_logits_step, module, optimizer, batch),
    }
    ratio = time_ratios(ways, "fused", repeats, "full logits")["full logits"]
    return [row("SFT step, full logits", str(shape), ratio, "fused", NAIVE_TARGET, ">=")]


def full_logits_step(module: FineTuning, optimizer: Optimizer, batch: StepBatch) -> None:
    """One step of SFT as it is usually written: the model's own logits, -100 where nothing is learned."""
    optimizer.zero_grad()
    cutting = module.cutting
    for cut in micro_batches(batch.examples, cutting.max_tokens, cutting.packing):
        micro = collate(cut, cutting.pad_id, cutting.packing)
        out = module.model(
            input_ids=micro.input_ids,
            position_ids=micro.position_ids,
            attention_mask=micro.attention_mask,
            use_cache=False,
        )
        targets = torch.full((micro.input_ids.numel(),), -100)
        targets[micro.at] = micro.labels
        F.cross_entropy(out.logits.float().flatten(0, 1), targets).backward()
    torch.nn.utils.clip_grad_norm_(module.trained(), 1.0)
    optimizer.step()


def lightning(
    model: PeftModel, shape: rig.Shape, steps: int, repeats: int, length: int = LENGTH
) -> list[dict[str, Any]]:
    """`fit` with metrics at every step and a checkpoint at every fifth over a bare loop on the same batches.

    From the end of the first step to the end of the last one: a run of hundreds of steps sets up once. A real
    run's step is 16 times as long as this one of 6 rows, its checkpoints ten times as rare.
    """
    rows = rig.examples([length] * 6 * steps, shape.vocabulary, range(2, 6 * steps, 3))
    module = rig.fine_tuning(model, "emd", 3 * length)
    batches = StepBatches(rows, 6, 1, seed=0, weigh=module.objective.weights)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ratios = []
    for repeat in tqdm(range(repeats), desc="Lightning", leave=False):
        ways = [_bare_seconds, _fit_seconds] if repeat % 2 else [_fit_seconds, _bare_seconds]
        seconds = {way: way(module, batches) for way in ways}
        ratios.append(seconds[_fit_seconds] / seconds[_bare_seconds])
    torch.set_num_threads(threads)
    details = {"steps": steps, "rows_per_step": 6, "checkpoint_every": 5, "ratios": ratios}
    what = "EMD step, Lightning fit"
    return [row(what, str(shape), median(ratios), "bare loop", LIGHTNING_TARGET, details=details)]


def _bare_seconds(module: FineTuning, batches: StepBatches) -> float:
    optimizer = rig.optimizer_of(module)
    ends = []
    for batch in batches:
        rig.bare_step(module, optimizer, batch)
        ends.append(time.process_time())
    return ends[-1] - ends[0]


def _fit_seconds(module: FineTuning, batches: StepBatches) -> float:
    ends = []
    with tempfile.TemporaryDirectory() as folder, _quiet():

        def line_written(values: dict[str, Any]) -> None:
            with (Path(folder) / "metrics.jsonl").open("a") as file:
                file.write(f"{values}\n")

        def step_ended(values: dict[str, Any]) -> None:
            line_written(values)
            ends.append(time.process_time())

        files = Files(Path(folder), line_written, step_ended)
        fit(module, batches, files, accelerator="cpu", log_every=1, checkpoint_every=5)
    return ends[-1] - ends[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's remarks."""
    lightning_log = logging.getLogger("lightning.pytorch")
    level = lightning_log.level
    lightning_log.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    lightning_log.setLevel(level)
