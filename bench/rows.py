"""What a measurement hands on, and how two ways of doing one thing are timed against each other."""

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
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


def time_ratios(
    ways: Mapping[str, Callable[[], object]],
    base: str,
    repeats: int,
    title: str,
    device: str = "cpu",
) -> dict[str, float]:
    """CPU time of each way over that of `base`, on a GPU time: the median over rounds of the ratio within a round.

    Every round calls all ways, in turning order, so that what else runs on the machine hits them alike.
    """
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    clock = cpu_seconds if device == "cpu" else partial(seconds_on, device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for repeat in tqdm(range(repeats + 1), desc=title, leave=False):
        order = list(ways) if repeat % 2 else list(ways)[::-1]
        took = {name: clock(ways[name]) for name in order}
        if repeat > 0:  # the first round warms up
            for name in ways:
                ratios[name].append(took[name] / took[base])
    torch.set_num_threads(threads)
    return {name: statistics.median(found) for name, found in ratios.items()}


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU time of one call, in seconds."""
    start = time.process_time()
    call()
    return time.process_time() - start


def seconds_on(device: str, call: Callable[[], object]) -> float:
    """Time of one call until the device has done its work, in seconds."""
    wait_for(device)
    start = time.perf_counter()
    call()
    wait_for(device)
    return time.perf_counter() - start


def wait_for(device: str) -> None:
    """Return when the device has done its work."""
    if device != "cpu":
        torch.cuda.synchronize()
