"""What a measurement hands on, and how two ways of doing one thing are timed against each other."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from tqdm import tqdm


def row(
    what: str,
    shape: str,
    ratio: float | None,
    of: str,
    target: float | None = None,
    bound: Literal["<=", ">="] = "<=",
    details: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One line of the table. `met` is None where there is no target; ratio is None where nothing could be measured.

    `details` go to the file alone.
    """
    met = None
    if target is not None and ratio is not None:
        met = ratio <= target if bound == "<=" else ratio >= target
    measured = {"what": what, "shape": shape, "ratio": ratio, "of": of, "bound": bound, "target": target, "met": met}
    return measured | {"details": dict(details or {})}


def cpu_ratios(ways: Mapping[str, Callable[[], object]], base: str, repeats: int, title: str) -> dict[str, float]:
    """CPU time of each way over that of `base`: the median over rounds of the ratio within a round.

    Every round calls all ways, in turning order, so that what else runs on the machine hits them alike.
    """
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for repeat in tqdm(range(repeats + 1), desc=title, leave=False):
        order = list(ways) if repeat % 2 else list(ways)[::-1]
        seconds = {name: cpu_seconds(ways[name]) for name in order}
        if repeat > 0:  # the first round warms up
            for name in ways:
                ratios[name].append(seconds[name] / seconds[base])
    torch.set_num_threads(threads)
    return {name: statistics.median(found) for name, found in ratios.items()}


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU time of one call, in seconds."""
    start = time.process_time()
    call()
    return time.process_time() - start
