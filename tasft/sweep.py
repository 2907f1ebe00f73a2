"""A grid of cells: which of them are there, which are to be run, and what becomes of them. Imports no torch itself.

`hydra_plugins/tasft_sweeper.py` is where Hydra finds it. A launcher runs the missing cells, each in a `CellTask` that
keeps its log and notes how it ended; `Sweep` plans before, watches meanwhile and sums up afterwards.
"""

import io
import json
import logging
import os
import platform
import re
import shlex
import shutil
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, TextIO

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict

from tasft.config import checked, mistake, register
from tasft.errors import UserError
from tasft.progress import Progress
from tasft.result.rows import write_atomically
from tasft.result.store import RunDir, check_writable

if TYPE_CHECKING:  # it brings torch
    from tasft.prepare import Run

log = logging.getLogger(__name__)

MISSING, RUNNING, DONE, FAILED = "not begun", "cut short", "done now", "failed"
BEFORE, SAME = "finished before", "the same run as another"  # plain SFT, say, at several toxic counts
HERE = ("basic", "joblib", "local")  # launchers whose cells run on this machine
POLL = 0.5  # seconds between two looks at what has ended


def expand(
    lines: Sequence[str], params: Mapping[str, Any], arguments: Sequence[str], config: DictConfig, loader: ConfigLoader
) -> list[tuple[str, ...]]:
    """The overrides of every cell, each cell once.

    Each line is a grid, as its overrides stand on a command line; the cells are those of all of them. `params` are
    swept in every line; what a line gives wins over them, and `arguments`, the command line's, over both. `${key}` in a
    line is the value of `config`, a list stands for choices. HydraException or UserError for what cannot be read.
    """
    parser = OverridesParser.create(config_loader=loader)
    cells: dict[tuple[str, ...], None] = {}
    for line in lines:
        given = [f"{key}={value}" for key, value in params.items()] + shlex.split(_filled(line, config))
        (batch,) = BasicSweeper.split_arguments(parser.parse_overrides([*given, *arguments]), None)
        cells |= dict.fromkeys(tuple(overrides) for overrides in batch)
    return list(cells)


def _filled(line: str, config: DictConfig) -> str:
    def value(key: re.Match[str]) -> str:
        found = OmegaConf.select(config, key[1])
        if found is None:
            raise UserError(f"hydra.sweeper.cells: there is no value {key[0]} for {line!r}")
        return ",".join(map(str, found)) if OmegaConf.is_list(found) else str(found)

    return re.sub(r"\$\{([^}]+)\}", value, line)


@dataclass
class Cell:
    """One cell of a grid, and what is known of it."""

    overrides: tuple[str, ...]
    run: Path | None = None  # its run's folder, where that is known
    state: str = MISSING
    reason: str = ""  # why it failed
    log: Path | None = None
    pid: int | None = None  # of its process, where that is on this machine
    seconds: float = 0.0
    deaths: int = 0  # processes that died over it


@dataclass
class CellTask:
    """What a launcher calls for each cell, in this process or another: runs it, keeps its log, notes how it ends.

    Returns always, so that no cell stops another. The log moves into the run's folder once there is one.
    """

    task: Callable[[DictConfig], object]
    folder: Path  # of the sweep: <number>.json says how cell <number> ends, <number>.txt is its log
    runs: dict[int, Path] = field(default_factory=dict)  # number of the cell -> its run's folder, where it is known
    aloud: bool = True  # whether the log is on the terminal, too

    def __call__(self, cfg: DictConfig) -> dict[str, Any]:
        """Run the cell that Hydra has composed; what the note says."""
        register()  # a process of its own knows nothing of ours yet
        job = HydraConfig.get().job
        if int(os.environ.get("SLURM_PROCID", 0)) > 0:  # of several processes of a cell the first one speaks
            self.task(cfg)
            return {}
        note, began, reason = self.folder / f"{job.num}.json", time.time(), None
        kept = Log(self.folder / f"{job.num}.txt", self.runs.get(job.num))
        said = {"pid": os.getpid(), "host": platform.node(), "log": str(kept.path)}
        with suppress(UserError):  # on a full disk it still has its return value to say it
            write_atomically(note, json.dumps(said))
        with _logging_to(kept, self.aloud):
            log.info("--- %s: %s", time.strftime("%Y-%m-%d %H:%M:%S"), " ".join(HydraConfig.get().overrides.task))
            try:
                self.task(cfg)
            except Exception as error:
                reason = mistake(error)
                if reason is None:  # a bug
                    log.error(traceback.format_exc())
                    reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
                kept.write(f"failed: {reason}\n")
        said |= {"seconds": time.time() - began, "reason": reason, "log": str(kept.path)}
        with suppress(UserError):
            write_atomically(note, json.dumps(said))
        return said


class Log(io.TextIOBase):
    """A cell's log: at `start`, and from when the run's folder is there, in its log.txt."""

    def __init__(self, start: Path, run: Path | None) -> None:
        self.path, self._run = start, RunDir(run) if run is not None else None

    def write(self, text: str) -> int:
        """Add `text`."""
        with suppress(OSError):  # a full disk stops the cell where it writes what it cannot do without
            if self._run is not None and self._run.path.is_dir() and self.path != self._run.log:
                before, self.path = self.path, self._run.log
                if before.exists():
                    text = before.read_text(encoding="utf-8") + text
                    before.unlink()
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        return len(text)


@contextmanager
def _logging_to(kept: Log, aloud: bool) -> Iterator[None]:
    """What is logged goes to `kept`; unless `aloud` nothing of it, nor of bars and warnings, to the terminal."""
    root, handler = logging.getLogger(), logging.StreamHandler(kept)
    before = root.handlers[:]
    root.handlers = [*before, handler] if aloud else [handler]
    try:
        with nullcontext() if aloud else redirect_stderr(kept):  # a bar on what is no terminal is lines in the log
            yield
    finally:
        root.handlers = before


class Sweep:
    """Runs those cells of a grid that are not there yet, and says to `out` how it goes."""

    def __init__(
        self, config: DictConfig, loader: ConfigLoader, task: CellTask, launcher: Launcher, out: TextIO
    ) -> None:
        self.config, self.loader, self.task, self.launcher, self.out = config, loader, task, launcher, out
        self.kind = str(config.hydra.launcher._target_).rpartition(".")[2].removesuffix("Launcher").lower()
        self.launcher_name = config.hydra.runtime.choices["hydra/launcher"]
        self.task.aloud = self.kind == "basic"  # several at once would talk across each other
        self.cells: list[Cell] = []
        self.tried: list[Cell] = []  # by the number under which it was launched
        self.lock = threading.Lock()
        for talks in ("hydra", "hydra_plugins"):  # of each job it launches
            logging.getLogger(talks).setLevel(logging.WARNING)

    def run(self, grid: Sequence[tuple[str, ...]], batch: int | None = None) -> None:
        """Run the grid, at most `batch` cells at a time in the launcher's hands. UserError where a cell failed."""
        check_writable(self.task.folder)
        self._plan(grid)
        missing = [cell for cell in self.cells if cell.state == MISSING]
        if missing:
            self.task.folder.mkdir(parents=True, exist_ok=True)
        # one place for all cells, whatever output_root they have
        self.config.hydra.overrides.hydra.append(f"hydra.sweep.dir={_quoted(self.task.folder)}")
        self._announce(missing, batch)
        size = batch or max(len(missing), 1)
        try:
            with self._watching():
                for start in range(0, len(missing), size):
                    self._launch(missing[start : start + size])
        except KeyboardInterrupt:
            self._stop()
            raise
        finally:
            self._sum_up()
        failed = sum(cell.state == FAILED for cell in self.cells)
        if failed:
            raise UserError(f"{failed} of {_cells(len(self.cells))} failed; the same command runs only what is missing")

    def _plan(self, grid: Sequence[tuple[str, ...]]) -> None:
        """Find the state of every cell. Raises what composing one raises: a key or a choice that does not exist."""
        self.cells = [Cell(overrides) for overrides in grid]
        configs = [self._composed(overrides) for overrides in grid]
        if self.config.hydra.job.config_name != "run":
            return  # other commands find out by themselves what is left to do
        seen: set[str] = set()
        bases: dict[Path, Run] = {}
        with Progress(len(grid), "looking for finished cells", "cell") as bar, _silent():
            for cell, cfg in zip(self.cells, configs, strict=True):
                try:
                    _find(cell, cfg, self.kind in HERE, seen, bases)
                except Exception as error:
                    why = mistake(error)
                    if why is not None:  # a bug the cell meets again, and has a log for it
                        cell.state, cell.reason = FAILED, why
                bar.advance()
        for run in bases.values():  # once, before several cells want it
            run.base.make(run.device)

    def _composed(self, overrides: Sequence[str]) -> DictConfig:
        cfg = self.loader.load_sweep_config(self.config, list(overrides))
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg

    def _say(self, text: str) -> None:
        self.out.write(f"tasft: {text}\n")
        self.out.flush()

    def _announce(self, missing: Sequence[Cell], batch: int | None) -> None:
        """How many cells there are to run, and what they will cost, as far as finished ones tell."""
        states = Counter(cell.state for cell in self.cells)
        counts = [f"{states[state]} {state}" for state in (BEFORE, SAME, FAILED) if states[state]]
        self.workers = _workers(self.kind, self.config.hydra.launcher, min(batch or len(missing), len(missing)))
        self._say(f"{_cells(len(self.cells))}: {', '.join([*counts, f'{len(missing)} to run'])} ({self.launcher_name})")
        for cell in self.cells if missing else []:
            if cell.state == FAILED:  # not only hours later, in the summary
                self._say(f"cannot run: {self.name(cell)}: {cell.reason}")
        cost = expected_cost([cell.run for cell in missing]) if missing else (0.0, 0.0)
        if cost is None:
            self._say("how long they take is not known before the first one is done")
        elif missing:
            took = _duration(cost[0] / self.workers) if self.workers else f"{_duration(cost[0])} of computing"
            gpus = f" and {cost[1]:.2g} GPU-hours" if cost[1] else ""
            self._say(f"about {took}{gpus}, by what finished cells of this model took")

    def _launch(self, cells: Sequence[Cell]) -> None:
        """Have the launcher run `cells`. Those that a dying process takes with it are tried again, each by itself."""
        queue = [list(cells)]
        while queue:
            batch, died, returned = queue.pop(0), None, []
            first = len(self.tried)
            self.tried += batch
            self.task.runs |= {first + i: cell.run for i, cell in enumerate(batch) if cell.run is not None}
            try:
                with _every_job_waited_for() if self.kind in ("local", "slurm") else nullcontext():
                    returned = self.launcher.launch([list(cell.overrides) for cell in batch], initial_job_idx=first)
            except Exception as error:  # of the launcher: what a cell raises is in its note
                died = error
            self._tell(self._read_notes({first + i: job._return_value for i, job in enumerate(returned) if job}))
            again = [cell for cell in batch if cell.state == RUNNING]
            rest = [cell for cell in batch if cell.state == MISSING]
            if died is not None and len(rest) == len(batch):  # not one could be started
                said = mistake(died) or f"{type(died).__name__}: {str(died).strip().partition(chr(10))[0]}"
                raise UserError(f"hydra/launcher={self.launcher_name} does not work: {said}") from died
            for cell in [*again, *(rest if died is None else [])]:
                cell.deaths += 1
                cell.state, cell.reason = FAILED, "its process died without a word: killed, or out of memory"
            if died is not None:
                again = [cell for cell in again if cell.deaths == 1]
                for cell in again:
                    cell.state = MISSING
                    self._say(f"a process died, perhaps over {self.name(cell)}: that one is tried again by itself")
                queue = [*([rest] if rest else []), *([cell] for cell in again), *queue]

    def _read_notes(self, returned: Mapping[int, Any] | None = None) -> list[Cell]:
        """Bring the launched cells up to date, also by what they have `returned`; those that have ended since."""
        ended = []
        with self.lock:
            for number, cell in enumerate(self.tried):
                if cell.state not in (MISSING, RUNNING):
                    continue
                with suppress(OSError, ValueError):
                    note = (returned or {}).get(number)
                    if not isinstance(note, dict):
                        note = json.loads((self.task.folder / f"{number}.json").read_text())
                    cell.state, cell.log = RUNNING, Path(note["log"])
                    cell.pid = note["pid"] if note["host"] == platform.node() else None
                    if "seconds" in note:
                        cell.seconds, cell.reason = note["seconds"], note["reason"] or ""
                        cell.state = FAILED if note["reason"] else DONE
                        ended.append(cell)
        return ended

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """A line for every cell that ends meanwhile."""
        stopped = threading.Event()

        def watch() -> None:
            while not stopped.wait(POLL):
                self._tell(self._read_notes())

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()

    def _tell(self, ended: Sequence[Cell]) -> None:
        took = [cell.seconds for cell in self.tried if cell.state == DONE]
        left = sum(cell.state in (MISSING, RUNNING) for cell in self.cells)
        total = len(self.cells) - sum(cell.state == SAME for cell in self.cells)
        when = f", about {_duration(fmean(took) * left / self.workers)} left" if took and left and self.workers else ""
        for cell in ended:
            how = "" if cell.state == DONE else f" failed ({cell.reason})"
            self._say(f"{total - left}/{total} done{when}: {self.name(cell)}{how}")

    def _stop(self) -> None:
        """Interrupt the cells that are at work, where that is on this machine."""
        if self.kind not in HERE:
            self._say("what is in the cluster's queue goes on: stop it there")
            return
        self._read_notes()
        for cell in self.tried:
            if cell.state == RUNNING and cell.pid is not None and cell.pid != os.getpid():
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(cell.pid, signal.SIGINT)

    def name(self, cell: Cell) -> str:
        """What tells the cell from the others of the grid."""
        varying = Counter(override for each in self.cells for override in each.overrides)
        told = [override for override in cell.overrides if varying[override] < len(self.cells)]
        return " ".join(told or cell.overrides) or "the one cell"

    def _sum_up(self) -> None:
        self._tell(self._read_notes())
        states = Counter(cell.state for cell in self.cells)
        states_in_order = (DONE, BEFORE, SAME, FAILED, RUNNING, MISSING)
        if self.tried:
            said = [f"{states[state]} {state}" for state in states_in_order if states[state]]
            self._say(f"{_cells(len(self.cells))}: {', '.join(said)}")
        for cell in self.cells:
            if cell.state == FAILED:
                moved = RunDir(cell.run).log if cell.run is not None and cell.log is not None else None
                kept = next((file for file in (cell.log, moved) if file is not None and file.is_file()), None)
                self._say(f"failed: {self.name(cell)}: {cell.reason}" + (f" (log: {kept})" if kept else ""))
        if all(cell.state == DONE for cell in self.tried):
            shutil.rmtree(self.task.folder, ignore_errors=True)
            with suppress(OSError):
                self.task.folder.parent.rmdir()


def _find(cell: Cell, cfg: DictConfig, here: bool, seen: set[str], bases: "dict[Path, Run]") -> None:
    """Note where the cell's run is and whether it is finished; UserError for a mistake in it.

    Where the cell runs on another machine, this one needs no GPU, and no filter reads the rows here: such a cell finds
    out itself whether it is finished.
    """
    from tasft.execute import nothing_left
    from tasft.prepare import prepare

    if not here:
        cfg.trainer.accelerator = "auto"
        if cfg.data.filter is not None:
            checked(cfg)
            return
    run = prepare(cfg)
    cell.run = run.folder.path
    config = run.config
    asked = [config.benchmark, config.judge, config.tasks, config.evaluate]
    same = repr((str(cell.run), asked))
    if same in seen:
        cell.state = SAME
    elif nothing_left(run) and config.resume:
        cell.state = BEFORE
    elif here and run.base.folder is not None:
        bases.setdefault(run.base.folder, run)
    seen.add(same)


def expected_cost(runs: Sequence[Path | None]) -> tuple[float, float] | None:
    """Seconds and GPU-hours that cells will take by what finished ones of the same model and loss took, or else of the
    same model; None where one has no such example."""
    if None in runs:
        return None
    folders = Counter(run.parents[1] for run in runs if run is not None)  # <output_root>/<model>/<loss>
    costs = {folder: _mean_cost(folder, "*/*") or _mean_cost(folder.parent, "*/*/*") for folder in folders}
    known = [(folders[folder] * cost[0], folders[folder] * cost[1]) for folder, cost in costs.items() if cost]
    return (sum(s for s, _ in known), sum(g for _, g in known)) if len(known) == len(folders) else None


def _mean_cost(folder: Path, runs: str) -> tuple[float, float] | None:
    found = [RunDir(path) for path in folder.glob(runs) if RunDir(path).finished]
    costs = [cost for cost in (run.read_cost() for run in found) if cost]
    if not costs:
        return None
    seconds = [sum(value for key, value in cost.items() if key.endswith("_seconds")) for cost in costs]
    return fmean(seconds), fmean(cost.get("gpu_hours", 0.0) for cost in costs)


def _workers(kind: str, launcher: DictConfig, cells: int) -> int | None:
    """How many of `cells` run at once; None where a queue decides."""
    if kind == "joblib":
        jobs = launcher.n_jobs if launcher.n_jobs > 0 else (os.cpu_count() or 1) + 1 + launcher.n_jobs
        return max(1, min(jobs, cells))
    return {"basic": 1, "local": max(cells, 1)}.get(kind)


@contextmanager
def _every_job_waited_for() -> Iterator[None]:
    """Hydra's submitit launcher stops at the first job whose process died, and forgets the others: not so here."""
    from submitit import Job
    from submitit.core.utils import FailedJobError, UncompletedJobError

    results = Job.results

    def patient(job: Any) -> list[Any]:
        try:
            return results(job)
        except (FailedJobError, UncompletedJobError):
            return [None]  # its cell has no note of an end

    Job.results = patient  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Job.results = results  # type: ignore[method-assign]


@contextmanager
def _silent() -> Iterator[None]:
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _quoted(path: Path) -> str:
    return QuotedString(str(path), Quote.single).with_quotes()


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


def _duration(seconds: float) -> str:
    """`40 s`, `3 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
