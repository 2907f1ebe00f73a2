"""Peak memory and CPU time of the head's losses: textbook code, textbook code on response rows only, and fused.

Memory is the peak resident set above the level before the call, forward and backward, one process per case.
Time is single-thread process time, the three ways interleaved in one process, median over repeats. Only the
ratios travel between machines. Linux only (/proc); nothing else is needed.

    python -m bench.head                  # every shape, about a quarter of an hour
    python -m bench.head --quick          # the shapes of a 32k vocabulary at a small width, about a minute
    python -m bench.head --json head.json
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tasft.loss.inputs import LossInputs
from tasft.loss.vocabulary import TokenEmbedding

WAYS = ("naive", "response_only", "fused")
VALUES = ("cross-entropy", "EMD bound", "exact EMD")
RESPONSE_SHARE = 0.4  # of all positions; the rest is prompt


@dataclass(frozen=True)
class Shape:
    """Positions of a micro-batch, prompt included, and the head that they meet."""

    vocabulary: int
    width: int
    positions: int
    dtype: str

    def __str__(self) -> str:
        return f"V={self.vocabulary // 1000}k D={self.width} N={self.positions} {self.dtype}"


LLAMA2 = Shape(32_000, 4096, 3 * 256, "float32")
LLAMA3 = Shape(128_000, 4096, 1536, "bfloat16")
# The same vocabulary at a width that is quick to time; element-wise work weighs more here.
NARROW = Shape(32_000, 1024, 3 * 256, "float32")

# Fused over naive for memory, over response_only for time.
MEMORY_TARGETS = {
    (32_000, "cross-entropy"): 0.35,
    (32_000, "EMD bound"): 0.40,
    (32_000, "exact EMD"): 0.40,
    (128_000, "cross-entropy"): 0.20,
    (128_000, "EMD bound"): 0.30,
    (128_000, "exact EMD"): 0.30,
}
TIME_TARGET = 1.0


def measure(quick: bool = False) -> list[dict]:
    """One row per measurement: what, shape, unit, the three ways, ratio, of (what the ratio is), target, met."""
    rows = []
    for shape in [NARROW] if quick else [LLAMA2, LLAMA3]:
        for value in VALUES:
            peaks = {way: peak_memory(shape, value, way) for way in WAYS}
            target = MEMORY_TARGETS[shape.vocabulary, value]
            rows.append(_row(f"memory, {value}", shape, "MB", peaks, "naive", target))
    for shape in [NARROW] if quick else [NARROW, LLAMA2]:
        for value in VALUES:
            seconds = cpu_time(shape, value, repeats=3 if quick else 5)
            rows.append(_row(f"time, {value}", shape, "CPU-s", seconds, "response_only", TIME_TARGET))
    return rows


def peak_memory(shape: Shape, value: str, way: str) -> float:
    """Peak MB above the level before one forward and backward pass, in a process of its own."""
    case = [str(shape.vocabulary), str(shape.width), str(shape.positions), shape.dtype, value, way]
    command = [sys.executable, "-m", "bench.head", "--one-case", *case]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    return float(done.stdout)


def cpu_time(shape: Shape, value: str, repeats: int) -> dict[str, float]:
    """Median CPU-seconds of one forward and backward pass, by way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    passes = {way: _prepared(shape, value, way) for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for repeat in range(repeats + 1):
        for way, one_pass in passes.items():
            start = time.process_time()
            one_pass()
            if repeat > 0:  # the first one warms up
                seconds[way].append(time.process_time() - start)
    torch.set_num_threads(threads)
    return {way: statistics.median(times) for way, times in seconds.items()}


def table(rows: list[dict]) -> Table:
    """The rows for a terminal."""
    out = Table("what", "shape", "unit", *WAYS, "ratio", "target", title="Head: forward and backward")
    for row in rows:
        numbers = [f"{row[way]:.3g}" if row["unit"] == "CPU-s" else f"{row[way]:.0f}" for way in WAYS]
        colour = "green" if row["met"] else "red"
        ratio = f"[{colour}]{row['ratio']:.2f}[/] of {row['of']}"
        out.add_row(row["what"], row["shape"], row["unit"], *numbers, ratio, f"<= {row['target']:.2f}")
    return out


def main() -> None:
    """Measure, print the table, and write the rows where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the small width only")
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    parser.add_argument("--one-case", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_case:
        vocabulary, width, positions, dtype, value, way = arguments.one_case
        print(_peak_here(Shape(int(vocabulary), int(width), int(positions), dtype), value, way))
        return
    rows = measure(arguments.quick)
    Console().print(table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def _row(what: str, shape: Shape, unit: str, ways: dict[str, float], of: str, target: float) -> dict:
    ratio = ways["fused"] / ways[of]
    measured = {"what": what, "shape": str(shape), "unit": unit, **ways, "ratio": ratio, "of": of}
    return {**measured, "target": target, "met": ratio <= target}


def _peak_here(shape: Shape, value: str, way: str) -> float:
    one_pass = _prepared(shape, value, way)
    _prepared(Shape(64, 8, 16, shape.dtype), value, way)()  # so that libraries' own buffers are there before
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to the present level
    before = _status_kb("VmRSS")
    one_pass()
    return (_status_kb("VmHWM") - before) / 1000


def _status_kb(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def _prepared(shape: Shape, value: str, way: str) -> Callable[[], None]:
    """One forward and backward pass; all that a training step would find ready is made here."""
    dtype = getattr(torch, shape.dtype)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(shape.positions, shape.width, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(shape.vocabulary, (shape.positions,), generator=generator)
    # One tied matrix: logits of spread 2.
    weight = torch.empty(shape.vocabulary, shape.width, dtype=dtype).normal_(0, 2 / shape.width**0.5)
    response = torch.arange(shape.positions) % 5 < 5 * RESPONSE_SHARE
    if way == "fused":
        return partial(_fused_pass, value, hidden, labels, response, weight, TokenEmbedding.from_weight(weight))
    unit = weight
    if value != "cross-entropy":
        norms = TokenEmbedding.from_weight(weight).inverse_norm
        unit = weight.clone().mul_(norms[:, None].to(dtype))
    return partial(_naive_pass, value, hidden, labels, response, weight, unit, way == "response_only")


def _fused_pass(
    value: str, hidden: Tensor, labels: Tensor, response: Tensor, weight: Tensor, embedding: TokenEmbedding
) -> None:
    row = torch.zeros(int(response.sum()), dtype=torch.int64)
    inputs = LossInputs(hidden[response], labels[response], row, weight, embedding, size=1)
    values = {
        "cross-entropy": lambda: -inputs.logps,
        "EMD bound": lambda: -inputs.emd_bound,
        "exact EMD": lambda: -inputs.emd,
    }
    values[value]().sum().backward()


def _naive_pass(
    value: str, hidden: Tensor, labels: Tensor, response: Tensor, weight: Tensor, unit: Tensor, response_only: bool
) -> None:
    if response_only:
        hidden, labels, response = hidden[response], labels[response], response[response]
    logits = (hidden @ weight.T).float()
    if value == "cross-entropy":
        losses = F.cross_entropy(logits, labels.masked_fill(~response, -100), reduction="none")
    else:
        mean = (logits.softmax(-1).to(unit.dtype) @ unit).float()
        observed = unit[labels].float()
        if value == "EMD bound":
            losses = -(observed - mean).square().sum(-1) * response
        else:
            losses = ((observed * mean).sum(-1) - 1) * response
    losses.sum().backward()


if __name__ == "__main__":
    main()
