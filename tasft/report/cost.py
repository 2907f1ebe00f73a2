"""What the runs have cost, from their cost.json: numbers that do not repeat, so they stand beside the tables."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasft.report.further import Section
from tasft.report.summary import MISSING, Setting, Summary, setting_of
from tasft.result.store import RunDir
from tasft.result.table import Measurement


@dataclass(frozen=True)
class Cost:
    """What one run has cost, over all its sessions; None where it was made before that was noted."""

    model: str
    loss: str
    toxic: int
    weight: float | None
    variant: str
    seed: int
    run: str  # relative to the root
    training_seconds: float | None
    answering_seconds: float | None
    judging_seconds: float | None
    devices: int | None  # held at once
    gpu_hours: float | None

    @property
    def hours(self) -> float | None:
        """Of all work."""
        if self.training_seconds is None:
            return None
        return (self.training_seconds + (self.answering_seconds or 0) + (self.judging_seconds or 0)) / 3600


NOTE = (
    "Of the runs (cells) whose cost is known: hours of training, answering and judging over all sessions, and times the"
    " GPUs that were held. Harvests, attacks and prefilling are not in it."
)
KEYS = ("training_seconds", "answering_seconds", "judging_seconds", "devices", "gpu_hours")


def costs(root: Path, rows: Sequence[Measurement]) -> list[Cost]:
    """What every run that was measured has cost."""
    runs = {row.run: (row.model, row.loss, row.toxic, row.weight, row.variant, row.seed, row.run) for row in rows}
    kept = {run: RunDir(root / run).read_cost() for run in runs}
    return [Cost(*name, *(kept[run].get(key) for key in KEYS)) for run, name in runs.items()]  # type: ignore[arg-type]


def cost_section(summary: Summary, spent: Sequence[Cost]) -> list[Section]:
    """One line for each setting that has runs of known cost, and their sum; nothing where none is known."""
    of_run = {each.run: each for each in spent if each.hours is not None}
    of_setting: dict[Setting, dict[str, Cost]] = defaultdict(dict)
    for row in summary.rows:
        if row.run in of_run:
            of_setting[setting_of(row)][row.run] = of_run[row.run]
    lines = [["loss", "toxic", "λ", "cells", "hours", "GPU-hours"]]
    for line in summary.lines:
        setting, made = line.setting, list(of_setting[line.setting].values())
        if made:
            weight = MISSING if setting.weight is None else f"{setting.weight:.3g}"
            loss = f"{setting.loss} {setting.variant}".strip()
            lines.append([loss, str(setting.toxic), weight, *_sums(made)])
    every = [each for made in of_setting.values() for each in made.values()]
    return [Section("Cost", [*lines, ["all", "", "", *_sums(every)]], [NOTE])] if every else []


def _sums(made: Sequence[Cost]) -> list[str]:
    hours, gpu_hours = sum(each.hours or 0 for each in made), sum(each.gpu_hours or 0 for each in made)
    return [str(len(made)), f"{hours:.2g}", f"{gpu_hours:.2g}" if gpu_hours else MISSING]
