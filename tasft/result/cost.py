"""What a run costs: the seconds of each kind of work, added up over all its sessions in its cost.json."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from tasft.result.rows import write_atomically
from tasft.result.store import RunDir

Work = Literal["training", "answering", "judging"]
EVERY = 5.0  # seconds between two entries while a run trains, so that a kill loses little


class Meter:
    """Adds to a run's cost.json: `<work>_seconds`, `devices`, and `gpu_hours` where the devices are GPUs.

    Work within other work counts once, as what it is: answers during the training are no training. All `devices` that
    a run holds count while it works, also those that stand idle while one answers or judges.
    """

    def __init__(self, folder: RunDir, devices: int, gpu: bool) -> None:
        self._folder, self._devices, self._gpu = folder, devices, gpu
        self._work: Work | None = None
        self._since = self._written = 0.0
        self._cost: dict[str, float] = {}

    @contextmanager
    def at(self, work: Work) -> Iterator[None]:
        """What happens within is `work`; it is on disk after the next `enter`, and lost where none follows."""
        before = self._work
        if before is None:
            self._cost, self._written, self._since = self._folder.read_cost(), 0.0, time.perf_counter()
        self._turn(work)
        try:
            yield
        finally:
            self._turn(before)

    def _turn(self, work: Work | None) -> None:
        now = time.perf_counter()
        if self._work is not None:
            key, seconds = f"{self._work}_seconds", now - self._since
            self._cost[key] = self._cost.get(key, 0.0) + seconds
            hours = self._devices * seconds / 3600 if self._gpu else 0.0
            self._cost["gpu_hours"] = self._cost.get("gpu_hours", 0.0) + hours
        self._work, self._since = work, now

    def enter(self, every: float = 0.0) -> None:
        """Bring cost.json up to date, unless that was done in the last `every` seconds or there is no folder yet."""
        self._turn(self._work)
        if self._since - self._written < every or not self._folder.path.is_dir():
            return
        self._written = self._since
        order = {f"{work}_seconds": 0.0 for work in ("training", "answering", "judging")}
        cost = order | self._cost | {"devices": max(self._devices, int(self._cost.get("devices", 1)))}
        write_atomically(self._folder.cost, json.dumps(cost, indent=1) + "\n")
