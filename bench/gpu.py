"""Fine-tuning at Llama-7B's shape on one GPU: tokens per second, peak memory, and the share of the matrix peak.

Random weights of huggyllama/llama-7b's shape in bfloat16, so nothing is downloaded; LoRA on q_proj and v_proj
(r = 8); optimizer steps of 96 examples with Alpaca-like lengths, 60 % prompt. Tokens are real ones.

FLOPs are counted as 4 per backbone parameter and token (forward 2, backward without weight gradients 2), and
2 V D per matrix product of the head and response token: 2 products for log-probabilities, 4 for EMD's bound.
Attention's own products are left out, so the share reached is understated rather than flattered.
"""

import gc
import time
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
from bench.rows import row
from tasft.data.steps import StepBatch, micro_batches
from tasft.loss.inputs import LossInputs
from tasft.loss.vocabulary import TokenEmbedding
from tasft.train.module import FineTuning

LLAMA_7B = rig.Shape(vocabulary=32_000, width=4096, layers=32, heads=32)
BUDGETS = (16_384, 8192, 4096)  # tokens of one micro-batch: the first that fits
EXAMPLES = 96  # of one optimizer step

SHARE_TARGET = 0.5  # of the measured matrix peak
SFT_MIX_TARGET = 1.08
HEAD_TARGET = 1.0

PRODUCTS = {"sft": 2, "emd": 4}  # of the head's, per safe and per toxic response token


@dataclass(frozen=True)
class Layout:
    """How the examples of a micro-batch stand side by side, and what computes their attention."""

    attention: str
    packing: bool

    def __str__(self) -> str:
        if not self.packing:
            return f"{self.attention}, padded, sorted by length"
        return f"{self.attention}, packed" + (" (dense block mask)" if self.attention == "sdpa" else "")


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
    """Rows of bench.rows; with arguments for a small machine too. A layout that fails becomes a row that says why."""
    peak = matrix_peak(peak_size, device, dtype)
    steps = 2 if quick else 5
    rows = []
    fastest: tuple[float, Layout, int] | None = None
    for layout in tqdm(layouts() if ways is None else ways, desc="layouts"):
        measured, budget, problem = _fitting(shape, device, dtype, layout, "sft", (), budgets, count, steps)
        what = f"SFT step, {layout}"
        if measured is None:
            rows.append(row(what, str(shape), None, f"failed: {problem}"))
            continue
        rows.append(_share_row(what, shape, measured, peak, budget))
        if fastest is None or measured.speed > fastest[0]:
            fastest = measured.speed, layout, budget
    if fastest is not None:
        speed, layout, budget = fastest
        for rate, toxic in {"300 in 20,300": (25,), "1 in every 3": range(2, count, 3)}.items():
            measured, _, problem = _fitting(shape, device, dtype, layout, "emd", toxic, [budget], count, steps)
            what = f"EMD step, toxic rows {rate}, {layout}"
            if measured is None:
                rows.append(row(what, str(shape), None, f"failed: {problem}"))
                continue
            rows.append(_share_row(what, shape, measured, peak, budget))
            rows.append(row(f"{what}, time", str(shape), speed / measured.speed, "SFT step", SFT_MIX_TARGET))
    _emptied(device)
    return rows + head(shape, device, dtype, positions=budgets[-1], repeats=3 if quick else 10)


def matrix_peak(size: int, device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product, the best of three runs of several."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    runs, best = 10, float("inf")
    torch.mm(a, b)
    for _ in range(3):
        best = min(best, seconds(lambda: [torch.mm(a, b) for _ in range(runs)], device) / runs)
    return 2 * size**3 / best


def seconds(call: Callable[[], object], device: str) -> float:
    """Time of one call until the device has done its work."""
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


@dataclass(frozen=True)
class Measured:
    """One kind of step."""

    speed: float  # real tokens per second
    flops: float  # per second
    peak_gib: float | None  # of GPU memory, weights included
    micro_batches: int


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

    took = seconds(some_steps, device) / steps
    tokens = sum(len(e.tokens.input_ids) for e in batch.examples)
    products = sum(e.tokens.response_length * PRODUCTS["emd" if e.tokens.toxic else "sft"] for e in batch.examples)
    flops = 4 * shape.backbone_parameters * tokens + 2 * products * shape.head_parameters
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    cutting = module.cutting
    cuts = micro_batches(batch.examples, cutting.max_tokens, cutting.packing)
    return Measured(tokens / took, flops / took, peak, len(cuts))


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
            times[way] = median(seconds(partial(call, emd), device) for _ in range(repeats))
        ratio = times["fused"] / times["naive"]
        rows.append(row(f"head time, {name}, fused", where, ratio, "naive", HEAD_TARGET, details=times))
        if device == "cuda":
            ratio = peaks["fused"] / peaks["naive"]
            rows.append(row(f"head memory, {name}, fused", where, ratio, "naive", HEAD_TARGET, details=peaks))
    return rows


def _fitting(
    shape: rig.Shape,
    device: str,
    dtype: torch.dtype,
    layout: Layout,
    loss: str,
    toxic: Sequence[int],
    budgets: Sequence[int],
    count: int,
    steps: int,
) -> tuple[Measured | None, int, str]:
    """What was measured, at the first budget that fits in memory; what went wrong where none did."""
    problem = "out of memory"
    batch = rig.step_batch(rig.examples(rig.alpaca_like(count), shape.vocabulary, toxic), loss)
    module: FineTuning | None = None
    for budget in budgets:
        _emptied(device)
        try:
            module = rig.fine_tuning(rig.llama(shape, device, dtype, layout.attention), loss, budget, layout.packing)
            return step_speed(module, shape, batch, device, steps), budget, ""
        except torch.cuda.OutOfMemoryError:
            tqdm.write(f"{layout}: {budget} tokens do not fit")
        except Exception as error:  # an attention that this machine cannot compile or has no kernel for
            problem = (str(error).splitlines() or [type(error).__name__])[0]
            break
        finally:
            module = None  # so that the next try finds the memory free
    return None, budgets[-1], problem


def _share_row(what: str, shape: rig.Shape, measured: Measured, peak: float, budget: int) -> dict[str, Any]:
    memory = "" if measured.peak_gib is None else f", {measured.peak_gib:.1f} GiB"
    what = f"{what}, {measured.speed:,.0f} tokens/s{memory}"
    of = f"matrix peak ({peak / 1e12:.3g} TFLOP/s)"
    details = vars(measured) | {"max_tokens": budget, "peak_flops": peak}
    return row(what, f"{shape}, {budget} tokens", measured.flops / peak, of, SHARE_TARGET, ">=", details)


def _peak_above(call: Callable[[], object], device: str) -> float:
    """GiB that one call takes above the level before; 0 without a GPU."""
    if device != "cuda":
        return 0.0
    _wait(device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _emptied(device: str) -> None:
    """Give back what earlier models have held."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
