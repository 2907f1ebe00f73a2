"""Who may work on a folder, when, and what others are told."""

import errno
import fcntl
import multiprocessing
import platform
import threading
import time

import pytest

from tasft.errors import UserError
from tasft.result.lock import only_one


def hold(path, held):
    """What another process does until it is killed."""
    with only_one(path):
        held.set()
        time.sleep(600)


def test_another_process_is_named_until_it_is_dead(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    path, context = tmp_path / "deep" / "run", multiprocessing.get_context("fork")
    held = context.Event()
    other = context.Process(target=hold, args=(path, held))
    other.start()
    held.wait()
    said = rf"at work on {path} \(process {other.pid} on {platform.node()}, SLURM job 17\): wait for it, or stop it"
    with pytest.raises(UserError, match=said), only_one(path):
        pass
    other.kill()
    other.join()
    with only_one(path):
        assert not path.exists()  # the folder itself is for whoever works on it to make
    assert not list(path.parent.iterdir())


def test_one_may_wait(tmp_path):
    inside = threading.Event()

    def hold_a_while():
        with only_one(tmp_path / "run"):
            inside.set()
            time.sleep(0.2)
            inside.clear()

    threading.Thread(target=hold_a_while).start()
    inside.wait()
    with only_one(tmp_path / "run", wait=True):
        assert not inside.is_set()


def test_a_file_system_without_locks_keeps_this_machine_apart(tmp_path, monkeypatch, caplog):
    real = fcntl.flock

    def flock(descriptor, operation):
        beside = tmp_path / ".run.lock"
        if beside.exists() and beside.samefile(f"/dev/fd/{descriptor}"):
            raise OSError(errno.ENOSYS, "Function not implemented")
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with only_one(tmp_path / "run"), pytest.raises(UserError, match="another process"), only_one(tmp_path / "run"):
        pass
    assert "its file system has no locks, so only processes of this machine are kept apart" in caplog.text
    beside = tmp_path / ".run.lock"
    beside.write_text("process 1 on another")  # a machine that sees the same files with locks
    with (
        pytest.raises(UserError, match=r"\(process 1 on another\).* wait for it, or delete"),
        only_one(tmp_path / "run"),
    ):
        pass
    assert beside.exists()
