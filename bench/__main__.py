"""Every measurement: one table with targets, one JSON file. `python -m bench --help` says which there are.

Without a GPU: the head, the training step, ways of batching, answers, and two processes, as ratios within one run. With
one: the head, and fine-tuning and answers at Llama-7B's shape.
"""

import argparse
import json
import logging
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

from bench import batching, generation, gpu, head, ranks, step

PARTS: dict[str, Callable[[bool], list[dict[str, Any]]]] = {
    "head": head.measure,
    "step": step.measure,
    "batching": batching.measure,
    "generation": generation.measure,
    "ranks": ranks.measure,
    "gpu": gpu.measure,
}

log = logging.getLogger("bench")


def main() -> None:
    """Measure the parts asked for, print the table, write the file."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small shapes, few repeats: about a minute on a CPU")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="PART", help=" ".join(PARTS))
    parser.add_argument("--out", type=Path, default=Path("bench.json"), help="default: bench.json")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)
    found = torch.cuda.is_available()
    usual = ["gpu", "head", "generation"] if found else ["head", "step", "batching", "generation", "ranks"]
    names = arguments.only or usual
    if "gpu" in names and not found:
        parser.error("gpu needs a GPU that PyTorch can see")
    rows: list[dict[str, Any]] = []
    for name in names:
        log.info("%s ...", name)
        start = time.perf_counter()
        rows += [{"part": name, **each} for each in PARTS[name](arguments.quick)]
        log.info("%s took %.0f s", name, time.perf_counter() - start)
        # after every part, so that an interrupted run keeps what it has
        written = {"machine": machine(), "quick": arguments.quick, "rows": rows}
        arguments.out.write_text(json.dumps(written, indent=2) + "\n")
    # a pipe has no width of its own: one line per row
    Console(width=None if sys.stdout.isatty() else 130).print(table(rows))
    log.info("%s of %s targets met; %s", *met(rows), arguments.out)


def machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    packages = ("torch", "lightning", "transformers", "peft")
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows for a terminal: a ratio is green where its target is met."""
    out = Table("part", "what", "shape", "ratio", "of", "target", "met", title="Ratios within one run")
    for before, each in zip([None, *rows], rows, strict=False):
        if before is not None and before["part"] != each["part"]:
            out.add_section()
        target, reached = each["target"], each["met"]
        colour = {True: "green", False: "red", None: "default"}[reached]
        wanted = "" if target is None else f"{each.get('bound', '<=')} {target:.2f}"
        verdict = {True: "yes", False: "no", None: ""}[reached]
        ratio = "–" if each["ratio"] is None else f"[{colour}]{each['ratio']:.2f}[/]"
        out.add_row(each["part"], each["what"], each["shape"], ratio, each["of"], wanted, verdict)
    return out


def met(rows: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """How many targets are met, of how many."""
    judged = [each["met"] for each in rows if each["met"] is not None]
    return sum(judged), len(judged)


if __name__ == "__main__":
    main()
