"""Fine-tuning at Llama-7B's shape on one GPU: tokens per second, peak memory, and the share of the matrix peak.

Random weights of huggyllama/llama-7b's shape in bfloat16, so nothing is downloaded; LoRA on q_proj and v_proj
(r = 8); optimizer steps of 96 examples with Alpaca-like lengths, 60 % prompt. Tokens are real ones.

FLOPs are counted as 4 per backbone parameter and token (forward 2, backward without weight gradients 2), and
2 V D per matrix product of the head and response token: 2 products for log-probabilities, 4 for EMD's bound.
Attention's own products are left out, so the share reached is understated rather than flattered.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers.utils import is_flash_attn_2_available

from bench import rig
from bench.rows import row, seconds_on, wait_for
from tasft.data.steps import StepBatch, collate, micro_batches
from tasft.loss.inputs import LossInputs
from tasft.loss.vocabulary import TokenEmbedding
from tasft.train.module import FineTuning

LLAMA_7B = rig.Shape(vocabulary=32_000, width=4096, layers=32, heads=32)
BUDGETS = (16_384, 8192, 4096)  # tokens of one micro-batch
EXAMPLES = 96  # of one optimizer step

SHARE_TARGET = 0.5  # of the measured matrix peak
MIXED_TARGET = 1.08
HEAD_TARGET = 1.0

PRODUCTS = {"sft": 2, "emd": 4}  # of the head's, per safe and per toxic response token


@dataclass(frozen=True)
class Layout:
    """How the examples of a micro-batch stand side by side, and what computes their attention."""

    attention: str
    packing: bool

    def __str__(self) -> str:
        if not self.packing:
            return f"{self.attention}, sorted, padded"
        return f"{self.attention}, packed" + (" (dense block mask)" if self.attention == "sdpa" else "")


@dataclass(frozen=True)
class Case:
    """A layout with the largest number of tokens, padding included, that a micro-batch may hold."""

    layout: Layout
    budget: int

    def __str__(self) -> str:
        return f"{self.layout}, {self.budget}"


def layouts() -> list[Layout]:
    """What this machine can run: flash_attention_2 only where it is installed."""
    found = [Layout("sdpa", packing=False), Layout("sdpa", packing=True), Layout("flex_attention", packing=True)]
    return found + [Layout("flash_attention_2", packing=True)] * is_flash_attn_2_available()


def measure(
    quick: bool = False,
    shape: rig.Shape = LLAMA_7B,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
    budgets: Sequence[int] = BUDGETS,
    count: int = EXAMPLES,
    peak_size: int = 8192,
    ways: Sequence[Layout] | None = None,
) -> list[dict[str, Any]]:
    """Rows of bench.rows; with arguments for a small machine too. What fails becomes a row that says why."""
    peak = matrix_peak(peak_size, device, dtype)
    steps = 2 if quick else 5
    cases = [Case(layout, budget) for layout in (layouts() if ways is None else ways) for budget in budgets]
    rows = []
    found: dict[Case, Measured] = {}
    for case in tqdm(cases, desc="layouts"):
        measured = _tried(shape, device, dtype, case, "sft", (), count, steps)
        rows.append(_share_row(f"SFT step, {case}", shape, measured, peak))
        if isinstance(measured, Measured):
            found[case] = measured
    if found:
        best = max(found, key=lambda case: found[case].speed)
        rows.append(_share_row(f"SFT step, fastest: {best}", shape, found[best], peak, SHARE_TARGET))
        for rate, toxic in {f"2 in {count}": (count // 4, 3 * count // 4), "1 in every 3": range(2, count, 3)}.items():
            measured = _tried(shape, device, dtype, best, "emd", toxic, count, steps)
            rows.append(_share_row(f"EMD step, toxic rows {rate}, {best}", shape, measured, peak))
            if isinstance(measured, Measured):
                ratio = found[best].speed / measured.speed
                rows.append(row(f"EMD step, toxic rows {rate}, time", str(shape), ratio, "SFT step", MIXED_TARGET))
    _emptied(device)
    return rows + head(shape, device, dtype, positions=budgets[-1], repeats=3 if quick else 10)


def matrix_peak(size: int, device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product, the best of three runs of several."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    runs, best = 10, float("inf")
    torch.mm(a, b)
    for _ in range(3):
        best = min(best, seconds_on(device, lambda: [torch.mm(a, b) for _ in range(runs)]) / runs)
    return 2 * size**3 / best


@dataclass(frozen=True)
class Measured:
    """One kind of step."""

    speed: float  # real tokens per second
    flops: float  # per second
    peak_gib: float | None  # of GPU memory, weights included
    micro_batches: int
    real_share: float  # of the positions computed; the rest is padding


def step_speed(module: FineTuning, shape: rig.Shape, batch: StepBatch, device: str, steps: int) -> Measured:
    """The speed of `batch` as an optimizer step of the module, which pushes toxic rows away by EMD or not at all."""
    optimizer = rig.optimizer_of(module)
    module.to(device)
    rig.bare_step(module, optimizer, batch)  # kernels are chosen and compiled, the optimizer's state is made
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def some_steps() -> None:
        for _ in range(steps):
            rig.bare_step(module, optimizer, batch)

    took = seconds_on(device, some_steps) / steps
    tokens = sum(len(e.tokens.input_ids) for e in batch.examples)
    products = sum(e.tokens.response_length * PRODUCTS["emd" if e.tokens.toxic else "sft"] for e in batch.examples)
    flops = 4 * shape.backbone_parameters * tokens + 2 * products * shape.head_parameters
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    cutting = module.cutting
    cuts = micro_batches(batch.examples, cutting.max_tokens, cutting.packing)
    made = (collate(cut, cutting.pad_id, cutting.packing) for cut in cuts)
    positions = sum(micro.input_ids.numel() for micro in made)
    return Measured(tokens / took, flops / took, peak, len(cuts), tokens / positions)


def head(shape: rig.Shape, device: str, dtype: torch.dtype, positions: int, repeats: int) -> list[dict[str, Any]]:
    """Time and, on a GPU, memory of the head's forward and backward pass, fused over logits at every position."""
    torch.manual_seed(0)
    hidden = torch.randn(positions, shape.width, device=device, dtype=dtype, requires_grad=True)
    weight = (torch.randn(shape.vocabulary, shape.width, device=device) * 2 / shape.width**0.5).to(dtype)
    labels = torch.randint(shape.vocabulary, (positions,), device=device)
    response = torch.arange(positions, device=device) >= int(rig.PROMPT_SHARE * positions)
    at = response.nonzero().squeeze(1)
    row_of = torch.zeros(len(at), dtype=torch.int64, device=device)
    embedding = TokenEmbedding.from_weight(weight)
    unit = F.normalize(weight, dim=-1)

    def fused(emd: bool) -> None:
        inputs = LossInputs(hidden[at], labels[at], row_of, weight, embedding, size=1)
        (inputs.emd_bound if emd else inputs.logps).sum().neg().backward()

    def naive(emd: bool) -> None:
        logits = (hidden @ weight.T).float()
        if emd:
            mean = (logits.softmax(-1).to(dtype) @ unit).float()
            ((unit[labels].float() - mean).square().sum(-1) * response).sum().neg().backward()
        else:
            F.cross_entropy(logits, labels.masked_fill(~response, -100), reduction="sum").backward()

    rows = []
    where = f"V={shape.vocabulary} D={shape.width} N={positions}"
    for name, emd in {"cross-entropy": False, "EMD bound": True}.items():
        times, peaks = {}, {}
        for way, call in {"naive": naive, "fused": fused}.items():
            call(emd)
            hidden.grad = None
            peaks[way] = _peak_above(partial(call, emd), device)
            times[way] = median(seconds_on(device, partial(call, emd)) for _ in range(repeats))
        ratio = times["fused"] / times["naive"]
        rows.append(row(f"head time, {name}, fused", where, ratio, "naive", HEAD_TARGET, details=times))
        if device == "cuda":
            ratio = peaks["fused"] / peaks["naive"]
            rows.append(row(f"head memory, {name}, fused", where, ratio, "naive", HEAD_TARGET, details=peaks))
    return rows


def _tried(
    shape: rig.Shape,
    device: str,
    dtype: torch.dtype,
    case: Case,
    loss: str,
    toxic: Sequence[int],
    count: int,
    steps: int,
) -> Measured | str:
    """What was measured, or in one line why nothing was."""
    _emptied(device)
    batch = rig.step_batch(rig.examples(rig.alpaca_like(count), shape.vocabulary, toxic), loss)
    try:
        model = rig.llama(shape, device, dtype, case.layout.attention)
        module = rig.fine_tuning(model, loss, case.budget, case.layout.packing)
        return step_speed(module, shape, batch, device, steps)
    except torch.cuda.OutOfMemoryError:
        return "out of memory"
    except Exception as error:  # an attention that this machine has no kernel for, or cannot compile
        return (str(error).splitlines() or [type(error).__name__])[0][:80]


def _share_row(
    what: str, shape: rig.Shape, measured: Measured | str, peak: float, target: float | None = None
) -> dict[str, Any]:
    if isinstance(measured, str):
        return row(what, str(shape), None, f"failed: {measured}")
    memory = "" if measured.peak_gib is None else f", {measured.peak_gib:.1f} GiB"
    what = f"{what}: {measured.speed:,.0f} tokens/s{memory}"
    of = f"matrix peak, {peak / 1e12:.3g} TFLOP/s"
    return row(what, str(shape), measured.flops / peak, of, target, ">=", vars(measured) | {"peak_flops": peak})


def _peak_above(call: Callable[[], object], device: str) -> float:
    """GiB that one call takes above the level before; 0 without a GPU."""
    if device != "cuda":
        return 0.0
    wait_for(device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def _emptied(device: str) -> None:
    """Give back what earlier models have held."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
