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

    A flock on a hidden file beside `path`: the system lets go of it when the process dies. It holds on every machine
    where the file system passes locks on, as NFS does; on one that has none it is a file of this machine alone.
    """
    beside, name = path.absolute().with_name(f".{path.name}.lock"), sha256(str(path.absolute()).encode()).hexdigest()
    own = Path(tempfile.gettempdir()) / f"tasft-{os.getuid()}-{name[:16]}.lock"
    for file in (beside, own):
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _take(descriptor, path, wait)
            break
        except OSError as error:
            os.close(descriptor)
            if error.errno not in UNKNOWN or file == own:
                raise
            log.warning("%s: its file system has no locks, so only processes of this machine are kept apart", path)
        except BaseException:
            os.close(descriptor)
            raise
    try:
        yield
    finally:
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
        os.close(descriptor)


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
