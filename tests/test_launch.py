"""Two processes: what they are told, how they fail, how they are ended."""

import json
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from tasft.errors import UserError
from tasft.launch import Signalled, _environment, launch
from tests import ranks


@pytest.fixture(autouse=True)
def found(monkeypatch):
    """The ranks find tasft and these tests."""
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


def test_they_know_each_other_and_nothing_of_slurm_and_what_the_first_says_is_logged(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SUBMITIT_JOB_ID", "4")
    caplog.set_level("INFO")
    looked = []
    launch(partial(ranks.speak, tmp_path), "cpu", 2, tmp_path / "logs", 1, looked.append, aloud=False)
    assert caplog.messages == ["all is well", "so far"]
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [[7, 0, 2, []], [7, 1, 2, []]]
    assert looked == [3, 5]


def test_a_users_mistake_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"^the loss is nan$"):
        launch(ranks.make_a_mistake, "cpu", 2, tmp_path)


def test_a_signal_is_handed_on_and_all_leave(tmp_path):
    def told(step):
        os.kill(os.getpid(), signal.SIGUSR2)

    before = signal.getsignal(signal.SIGUSR2)
    with pytest.raises(Signalled) as left:
        launch(ranks.leave_when_told, "cpu", 2, tmp_path, looked=told)
    assert left.value.signum == signal.SIGUSR2
    assert signal.getsignal(signal.SIGUSR2) == before


def test_a_rank_that_a_signal_has_ended_alone_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("tasft.launch.GRACE", 0.5)
    with pytest.raises(UserError, match=r"^rank 1 of 2 was killed by SIGTERM: its log is .*rank1\.log; the same"):
        launch(ranks.lose_the_second, "cpu", 2, tmp_path)


def test_threads_are_dealt_out_where_the_user_has_not_said_how_many(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert _environment(1, 2, 3)["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert _environment(1, 2, 3)["OMP_NUM_THREADS"] == "5"


def test_ctrl_c_ends_all_of_them(tmp_path):
    def interrupt(step):
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        launch(partial(ranks.wait, tmp_path), "cpu", 2, tmp_path, looked=interrupt)
    assert time.monotonic() - began < 300
    for rank in (0, 1):
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / f"{rank}.pid").read_text()), 0)
