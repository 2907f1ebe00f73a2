"""Start the processes that train one run on this machine, stand by them, and say what became of them.

Lightning would start them by running the command again, which a sweep does not survive; and from what torchrun reports
no sentence can be made that names the rank and its log. So they are plain processes of `tasft.worker`, in sessions of
their own: a signal comes to the command alone, which tells them.
"""

import json
import logging
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tasft.errors import UserError
from tasft.result.rows import writing
from tasft.train.group import Group

log = logging.getLogger(__name__)

Look = Callable[[int], None]
Task = Callable[[Group, Look], object]

# of other launchers: what they say holds for this process, and not for those that it starts
OTHERS = ("SLURM_", "SUBMITIT_", "PMI_", "PMIX_", "TORCHELASTIC_", "GROUP_", "ROLE_", "MASTER_", "LOCAL_RANK", "RANK")
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# exit codes of a rank that has left in good order, and of one that was not training yet -> the signal
STOPPED: dict[int, int] = {sign * each + base: each for each in SIGNALS for sign, base in ((1, 128), (-1, 0))}
GRACE = 10.0  # seconds that ranks have to end by themselves once all is over
LOST = 75  # exit code of a rank that another one has left alone
TASK, MISTAKE = "task.pkl", "mistake.json"  # files of the folder that ranks are given


class Signalled(Exception):
    """A signal that ends the ranks, after which they have left in good order."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def launch(
    task: Task,
    device: str,
    world: int,
    logs: Path,
    threads: int | None = None,
    looked: Look | None = None,
    aloud: bool = True,
) -> None:
    """Have `world` processes do `task(group, looked)`, which is pickled for them; returns when all have done it.

    `device` is cpu or cuda, `threads` how many each may compute with, unless OMP_NUM_THREADS says it. What the first
    one logs is in rank0.log of `logs`; it speaks where this process does, or else (`aloud` false) what it says is
    logged here. The others write to their own logs. `looked` is called with each step that the first rank has
    evaluated, while that waits. UserError where a rank fails, Signalled where a signal came and all have left.
    """
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tasft-ranks-")))
        (scratch / TASK).write_bytes(pickle.dumps(task))
        with writing(logs):
            logs.mkdir(parents=True, exist_ok=True)
            files = [stack.enter_context((logs / f"rank{rank}.log").open("w")) for rank in range(world)]
        first = None if aloud else stack.enter_context(_logged())
        ours, theirs = (stack.enter_context(each) for each in socket.socketpair())
        command = [
            sys.executable,
            "-m",
            "tasft.worker",
            str(scratch),
            device,
            str(logs),
            str(theirs.fileno()),
            str(os.getpid()),
        ]
        ranks: list[subprocess.Popen[bytes]] = []
        stack.callback(_end, ranks)
        for rank in range(world):
            out = first if rank == 0 else files[rank]
            ranks.append(subprocess.Popen(
                command, env=_environment(rank, world, threads), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True, pass_fds=[theirs.fileno()],
            ))  # fmt: skip
        theirs.close()
        with _telling(ranks):
            _stand_by(ranks, ours, looked)
        failed = [rank.returncode for rank in ranks if rank.returncode is not None and rank.returncode != 0]
        if failed and len(failed) == world and set(failed) <= STOPPED.keys():
            raise Signalled(STOPPED[failed[0]])
        if failed:
            raise UserError(_what_happened(ranks, scratch / MISTAKE, logs))


def _environment(rank: int, world: int, threads: int | None) -> dict[str, str]:
    """What torchrun would say, and nothing of who has started this process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OTHERS)}
    kept |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    kept |= {"TORCHELASTIC_RUN_ID": "tasft", "PYTHONUNBUFFERED": "1"}
    if sys.platform == "linux":
        kept.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all of them are here, whatever the machine's name resolves to
    if threads is not None:
        kept.setdefault("OMP_NUM_THREADS", str(threads))
    return kept


@contextmanager
def _logged() -> Iterator[int]:
    """A file to write to, as a descriptor: each line is logged."""
    heard, said = os.pipe()

    def hear() -> None:
        with os.fdopen(heard, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                log.info("%s", line.rstrip())

    thread = threading.Thread(target=hear, daemon=True)
    thread.start()
    try:
        yield said
    finally:
        os.close(said)
        thread.join(GRACE)


def _stand_by(
    ranks: list[subprocess.Popen[bytes]],
    channel: socket.socket,
    looked: Look | None,
) -> None:
    """Wait until all ranks are done, or one has failed.

    A signal may end ranks that do not train yet. Where that was not meant for all of them, the others would wait for
    the lost ones.
    """
    listening, ended = [channel], None
    while None in (codes := [rank.poll() for rank in ranks]):
        if any(code not in (None, 0, *STOPPED) for code in codes):
            return
        if any(code is not None and code < 0 for code in codes):
            ended = ended or time.monotonic()
            if time.monotonic() - ended > GRACE:
                return
        if not select.select(listening, [], [], 0.1)[0]:
            continue
        said = channel.recv(64)
        if not said:  # the ranks have closed it
            listening = []
        else:
            if looked is not None:
                looked(int(said))  # what it raises ends the ranks
            channel.sendall(b"on")


@contextmanager
def _telling(ranks: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Hands the signals that end a training in good order on to the ranks."""

    def tell(signum: int, _: Any) -> None:
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, tell) for each in SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _end(ranks: list[subprocess.Popen[bytes]]) -> None:
    """Interrupt those that are still there, and kill the ones that do not end."""
    left = [rank for rank in ranks if rank.poll() is None]
    for rank in left:
        rank.send_signal(signal.SIGINT)
    until = time.monotonic() + GRACE
    for rank in left:
        with suppress(subprocess.TimeoutExpired):
            rank.wait(max(until - time.monotonic(), 0))
        if rank.poll() is None:
            rank.kill()
            rank.wait()


def _what_happened(ranks: list[subprocess.Popen[bytes]], mistake: Path, logs: Path) -> str:
    """One sentence about the rank that failed, those aside that failed because it did."""
    if mistake.exists():
        said: Mapping[str, str] = json.loads(mistake.read_text())
        return said["sentence"]
    codes = {number: rank.returncode for number, rank in enumerate(ranks) if rank.returncode}
    number, code = min(codes.items(), key=lambda each: (each[1] == LOST, each[1] > 0, each[0]))
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"has failed (exit code {code})"
    return (
        f"rank {number} of {len(ranks)} {how}: its log is {logs / f'rank{number}.log'};"
        " the same command goes on from the last checkpoint"
    )
