"""One process at a time at work on a folder, also where several machines see it."""

import errno
import fcntl
import logging
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from tasft.errors import UserError
from tasft.result.rows import writing

log = logging.getLogger(__name__)

UNKNOWN = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # what file systems say that have no locks


@contextmanager
def only_one(path: Path, wait: bool = False) -> Iterator[None]:
    """Within it no other process is at work on `path`; UserError that says which one is, or `wait` for it.

    A flock on a hidden file beside `path`, which is there meanwhile: the system lets go of it when the process dies. It
    holds on every machine where the file system passes locks on, as NFS does; on one that has none it is a file of this
    machine alone.
    """
    beside, name = path.absolute().with_name(f".{path.name}.lock"), sha256(str(path.absolute()).encode()).hexdigest()
    own = Path(tempfile.gettempdir()) / f"tasft-{os.getuid()}-{name[:16]}.lock"
    try:
        file, descriptor = beside, _locked(beside, path, wait)
    except OSError as error:
        if error.errno not in UNKNOWN:
            raise
        _leave(beside, path)
        log.warning("%s: its file system has no locks, so only processes of this machine are kept apart", path)
        file, descriptor = own, _locked(own, path, wait)
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink()  # before the lock goes: whoever has waited for it looks for another
        os.close(descriptor)


def _leave(file: Path, path: Path) -> None:
    """Take away the file that cannot be locked here; UserError where a machine that could lock it has done so."""
    holder = file.read_text(errors="replace") if file.exists() else ""
    if holder:
        raise UserError(
            f"another process is at work on {path} ({holder}), or was when its machine died; no lock can tell, as this"
            f" machine has none on that file system: wait for it, or delete {file}"
        )
    file.unlink(missing_ok=True)


def _locked(file: Path, path: Path, wait: bool) -> int:
    """A descriptor of `file`, locked."""
    while True:
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _take(descriptor, path, wait)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), file.stat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # of one who was done just then


def _take(descriptor: int, path: Path, wait: bool) -> None:
    """Lock the file, and write into it who has done so."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace")
        at_work = f"another process is at work on {path}" + (f" ({holder})" if holder else "")
        if not wait:
            raise UserError(f"{at_work}: wait for it, or stop it") from None
        log.info("%s: waiting for it", at_work)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    job = os.environ.get("SLURM_JOB_ID")
    note = f"process {os.getpid()} on {platform.node()}" + (f", SLURM job {job}" if job else "")
    with suppress(OSError):  # a full disk; the lock holds all the same
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, note.encode(), 0)
        os.fsync(descriptor)
