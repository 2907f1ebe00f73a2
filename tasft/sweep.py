"""A grid of cells: which of them are there, which are to be run, and what becomes of them. Imports no torch itself.

`hydra_plugins/tasft_sweeper.py` is where Hydra finds it. A launcher runs the missing cells, each in a `CellTask` that
keeps its log and notes how it ended; `Sweep` plans before, watches meanwhile and sums up afterwards.
"""

import hashlib
import io
import json
import logging
import os
import platform
import re
import shlex
import shutil
import signal
import tempfile
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

from filelock import FileLock, Timeout
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
from tasft.remote import check_key
from tasft.result.rows import write_atomically
from tasft.result.store import RunDir, check_writable

if TYPE_CHECKING:  # it brings torch
    from tasft.prepare import Run

log = logging.getLogger(__name__)

MISSING, RUNNING, DONE, FAILED = "not begun", "cut short", "done now", "failed"
BEFORE, SAME = "finished before", "the same run as another"  # plain SFT, say, at several toxic counts
HERE = ("basic", "joblib", "local")  # launchers whose cells run on this machine
DIED = "its process died without a word: killed, or out of memory"
VANISHED = "its job left the queue without a word: cancelled, killed, out of memory or out of time"
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
    devices: int | None = 1  # GPUs, or processes on the CPU; None: every GPU
    on_cpu: bool = False
    run: Path | None = None  # its run's folder, where that is known
    state: str = MISSING
    reason: str = ""  # why it failed
    log: Path | None = None
    pid: int | None = None  # of its process, where that is on this machine
    seconds: float = 0.0
    deaths: int = 0  # processes that died over it


@dataclass(frozen=True)
class Share:
    """What a process of this machine computes with while others run other cells: CUDA's names of GPUs, CPU threads."""

    gpus: tuple[str, ...]  # of all cells together
    each: int | None  # of them for one process; None: all
    threads: int | None  # None: as OMP_NUM_THREADS says

    def take(self, folder: Path) -> None:
        """Have this process compute with its share, until it ends; `folder` is the sweep's, whose cells share."""
        if self.threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(self.threads)
        if not self.gpus:
            return
        name = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]
        locks = Path(tempfile.gettempdir()) / f"tasft-{os.getuid()}-{name}"  # this machine's, as the GPUs are
        locks.mkdir(exist_ok=True)
        while len(_taken) < (self.each or 0):
            for gpu in [gpu for gpu in self.gpus if gpu not in _taken]:
                lock = FileLock(locks / f"gpu-{gpu.replace('/', '-')}.lock", timeout=0.1)
                with suppress(Timeout):  # another's; or that of a process that is just ending
                    lock.acquire()
                    _taken[gpu] = lock
                    break
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(_taken or self.gpus)


_taken: dict[str, FileLock] = {}  # this process's GPUs: once CUDA has begun it sees no others


@dataclass
class CellTask:
    """What a launcher calls for each cell, in this process or another: runs it, keeps its log, notes how it ends.

    Returns always, so that no cell stops another. The log moves into the run's folder once there is one.
    """

    task: Callable[[DictConfig], object]
    folder: Path  # of the sweep: <number>.json says how cell <number> ends, <number>.txt is its log
    runs: dict[int, Path] = field(default_factory=dict)  # number of the cell -> its run's folder, where it is known
    aloud: bool = True  # whether the log is on the terminal, too
    share: Share | None = None  # of the machine, where it is the sweep's own

    def __call__(self, cfg: DictConfig) -> dict[str, Any]:
        """Run the cell that Hydra has composed; what the note says."""
        if self.share is not None:
            self.share.take(self.folder)  # before PyTorch is there
        register()  # a process of its own knows nothing of ours yet
        from tasft.launch import GRACE
        from tasft.train.group import joined

        if not joined().first:  # of several processes of a cell the first one speaks
            try:
                self.task(cfg)
            except Exception:
                time.sleep(GRACE)  # what has started them may end them all with the first that fails
                raise
            return {}
        job = HydraConfig.get().job
        note, began, reason = self.folder / f"{job.num}.json", time.time(), None
        kept = Log(self.folder / f"{job.num}.txt", self.runs.get(job.num), moves=cfg.resume)
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
        kept.move()
        said |= {"seconds": time.time() - began, "reason": reason, "log": str(kept.path)}
        with suppress(UserError):
            write_atomically(note, json.dumps(said))
        return said


class Log(io.TextIOBase):
    """A cell's log: at `start`, and when the run's folder is there, in its log.txt.

    It `moves` as soon as that is there; where it may be a folder that is about to be replaced, only by `move`.
    """

    def __init__(self, start: Path, run: Path | None, moves: bool = True) -> None:
        self.path, self._run, self._moves = start, RunDir(run) if run is not None else None, moves

    def write(self, text: str) -> int:
        """Add `text`."""
        if self._moves:
            self.move()
        with suppress(OSError), self.path.open("a", encoding="utf-8") as file:
            file.write(text)  # a full disk stops the cell where it writes what it cannot do without
        return len(text)

    def move(self) -> None:
        """Go on in the run's folder, where there is one."""
        if self._run is None or self.path == self._run.log or not self._run.path.is_dir():
            return
        before, self.path = self.path, self._run.log
        with suppress(OSError):
            said = before.read_text(encoding="utf-8")
            with self.path.open("a", encoding="utf-8") as file:
                file.write(said)
            before.unlink()


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
        self.bases: dict[Path, Run] = {}  # a run of each base model from scratch that cells of this machine want
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
        size = self._make_room(missing, batch)
        self._announce(missing)
        for run in self.bases.values():  # once, before several cells want it
            if run.base.weights is None:
                self._say(f"{run.config.model.name} is trained from scratch first")
            run.base.make(run.device)
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
        """Find the state of every cell. Raises what composing one raises: a key or a choice that does not exist.

        UserError, too, where the key of a server is given itself.
        """
        configs = [self._composed(overrides) for overrides in grid]
        for cfg in configs:
            _check_keys(OmegaConf.to_container(cfg, resolve=False))
        self.cells = [
            Cell(overrides, cfg.trainer.devices, cfg.trainer.accelerator == "cpu")
            for overrides, cfg in zip(grid, configs, strict=True)
        ]
        if self.config.hydra.job.config_name != "run":
            return  # other commands find out by themselves what is left to do
        seen: set[str] = set()
        with Progress(len(grid), "looking for finished cells", "cell") as bar, _silent():
            for cell, cfg in zip(self.cells, configs, strict=True):
                try:
                    _find(cell, cfg, self.kind in HERE, seen, self.bases)
                except Exception as error:
                    why = mistake(error)
                    if why is not None:  # a bug the cell meets again, and has a log for it
                        cell.state, cell.reason = FAILED, why
                bar.advance()

    def _composed(self, overrides: Sequence[str]) -> DictConfig:
        cfg = self.loader.load_sweep_config(self.config, list(overrides))
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg

    def _say(self, text: str) -> None:
        self.out.write(f"tasft: {text}\n")
        self.out.flush()

    def _make_room(self, missing: Sequence[Cell], batch: int | None) -> int:
        """How many cells the launcher gets at once. Those that run at the same time get GPUs of their own."""
        size = max(min(batch or len(missing), len(missing)), 1)
        self.workers = {"basic": 1}.get(self.kind)  # cells that compute at the same time; None where a queue decides
        if not missing or self.kind not in ("joblib", "local"):
            return size
        from tasft.train.group import cores, visible_gpus

        settings = self.config.hydra.launcher
        tasks, cpus = (settings.tasks_per_node, settings.cpus_per_task or 1) if self.kind == "local" else (1, 1)
        gpus = () if all(cell.on_cpu for cell in missing) else tuple(visible_gpus())
        each = max(tasks, *(cell.devices or len(gpus) or 1 for cell in missing))
        room = max(1, len(gpus) // each if gpus else cores() // (each * cpus))
        if self.kind == "joblib":
            from joblib import effective_n_jobs

            at_once = min(effective_n_jobs(settings.n_jobs), size)
        else:  # it starts all that it gets
            at_once = min(batch or room, size)
        if gpus and tasks > 1:
            room = 1  # all tasks of a cell have to see the same GPUs
        if gpus and at_once > room:
            self._say(f"{room} at a time: of {len(gpus)} GPU{'s' * (len(gpus) > 1)} a cell takes {each}")
            at_once = room
        if self.kind == "joblib":
            self.launcher.joblib["n_jobs"] = at_once
        self.workers = min(at_once, room)
        if self.kind == "local" or at_once > 1:  # of one at a time joblib makes no processes
            threads = None if "OMP_NUM_THREADS" in os.environ else max(1, cores() // (at_once * (1 if gpus else each)))
            self.task.share = Share(gpus, each if at_once > 1 else None, threads)
        return at_once if self.kind == "local" else size

    def _announce(self, missing: Sequence[Cell]) -> None:
        """How many cells there are to run, and what they will cost, as far as finished ones tell."""
        states = Counter(cell.state for cell in self.cells)
        counts = [f"{states[state]} {state}" for state in (BEFORE, SAME, FAILED) if states[state]]
        self._say(f"{_cells(len(self.cells))}: {', '.join([*counts, f'{len(missing)} to run'])} ({self.launcher_name})")
        for cell in self.cells if missing else []:
            if cell.state == FAILED:  # not only hours later, in the summary
                self._say(f"cannot run: {self.name(cell)}: {cell.reason}")
        if not missing:
            return
        seconds, hours, unknown = expected_cost([cell.run for cell in missing])
        if unknown < len(missing):
            took = _duration(seconds / self.workers) if self.workers else f"{_duration(seconds)} of computing"
            gpus, of = f" and {hours:.2g} GPU-hours" if hours else "", f" for {len(missing) - unknown}" * (unknown > 0)
            self._say(f"about {took}{gpus}{of}, by what finished cells of the same model took")
        if unknown:
            which = "they take" if unknown == len(missing) else f"the other {unknown} take"
            self._say(f"how long {which} is not known before the first one is done")

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
                cell.state, cell.reason = FAILED, DIED if self.kind in HERE else VANISHED
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


def _check_keys(node: Any, name: str = "") -> None:
    """UserError where a server's key stands in the place of its name: before a log or a launcher writes it down."""
    if not isinstance(node, dict):
        return
    key = node.get("key")
    if "base_url" in node and isinstance(key, str) and "${" not in key:
        check_key(key, name)
    for part, below in node.items():
        _check_keys(below, f"{name}{part}.")


def _find(cell: Cell, cfg: DictConfig, here: bool, seen: set[str], bases: "dict[Path, Run]") -> None:
    """Note where the cell's run is and whether it is finished; UserError for a mistake in it.

    Where the cell runs on another machine, this one needs none of its devices, and no filter reads the rows here: such
    a cell finds out itself whether it is finished.
    """
    from tasft.execute import nothing_left
    from tasft.prepare import prepare

    if not here and cfg.data.filter is not None:
        checked(cfg)
        return
    run = prepare(cfg, here)
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


def expected_cost(runs: Sequence[Path | None]) -> tuple[float, float, int]:
    """Seconds and GPU-hours that cells will take by what finished ones of the same model and loss took, or else of the
    same model; and how many cells have no such example, which are not in the sums."""
    folders = Counter(run.parents[1] for run in runs if run is not None)  # <output_root>/<model>/<loss>
    costs = {folder: _mean_cost(folder, "*/*") or _mean_cost(folder.parent, "*/*/*") for folder in folders}
    known = [(folders[folder], *cost) for folder, cost in costs.items() if cost]
    seconds, hours = (sum(count * each[i] for count, *each in known) for i in (0, 1))
    return seconds, hours, len(runs) - sum(count for count, *_ in known)


def _mean_cost(folder: Path, runs: str) -> tuple[float, float] | None:
    found = [RunDir(path) for path in folder.glob(runs) if RunDir(path).finished]
    costs = [cost for cost in (run.read_cost() for run in found) if cost]
    if not costs:
        return None
    seconds = [sum(value for key, value in cost.items() if key.endswith("_seconds")) for cost in costs]
    return fmean(seconds), fmean(cost.get("gpu_hours", 0.0) for cost in costs)


@contextmanager
def _every_job_waited_for() -> Iterator[None]:
    """Hydra's submitit launcher stops at the first job whose process died, and forgets the others: not so here.

    Nor does it wait for jobs that SLURM knows no more: submitit asks sacct, which knows nothing where no accounts are
    kept; here squeue is asked.
    """
    from submitit import Job
    from submitit.core.utils import FailedJobError, UncompletedJobError
    from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

    class Queue(SlurmInfoWatcher):
        def _make_command(self) -> list[str] | None:
            # all jobs: also in hidden partitions, and whatever filters the user has for their own eyes
            filters = [part for name in os.environ if name.startswith("SQUEUE_") for part in ("-u", name)]
            squeue = ["squeue", "--all", "--noheader", "--array", "--format=%i", f"--user={os.getuid()}"]
            return ["env", *filters, *squeue] if self._registered - self._finished else None

        def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
            queued = (string.decode() if isinstance(string, bytes) else string).split()
            return {job: {"State": "RUNNING" if job in queued else "GONE"} for job in self._registered}

    results, watcher = Job.results, SlurmJob.watcher

    def patient(job: Any) -> list[Any]:
        try:
            return results(job)
        except (FailedJobError, UncompletedJobError):
            return [None]  # its cell has no note of an end

    Job.results, SlurmJob.watcher = patient, Queue()  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Job.results, SlurmJob.watcher = results, watcher  # type: ignore[method-assign]


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
