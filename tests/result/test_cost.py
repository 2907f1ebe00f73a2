"""What a run costs, by a clock that is wound by hand."""

import pytest

from tasft.result import cost as module
from tasft.result.cost import Meter
from tasft.result.store import RunDir


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told."""
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_work_within_work_counts_once_and_sessions_add_up(clock, tmp_path):
    folder = RunDir(tmp_path)
    meter = Meter(folder, devices=4, gpu=True)
    with meter.at("training"):
        clock(3000)
        with meter.at("answering"):
            clock(600)
            with meter.at("judging"):
                clock(60)
        clock(600)
        meter.enter()
    hours = 4 * (3600 + 600 + 60) / 3600  # all four are held while one answers
    expected = {"training_seconds": 3600, "answering_seconds": 600, "judging_seconds": 60, "devices": 4}
    assert folder.read_cost() == {**expected, "gpu_hours": pytest.approx(hours)}
    clock(1000)  # nothing of the run
    again = Meter(folder, devices=1, gpu=False)
    with again.at("judging"):
        clock(40)
    again.enter()
    assert folder.read_cost() == {**expected, "judging_seconds": 100, "gpu_hours": pytest.approx(hours)}


def test_what_a_kill_loses_is_little(clock, tmp_path):
    folder = RunDir(tmp_path)
    meter = Meter(folder, devices=1, gpu=False)
    with meter.at("training"):
        for _ in range(10):
            clock(2)
            meter.enter(every=5)
        assert 20 - 5 <= folder.read_cost()["training_seconds"] <= 20


def test_a_run_without_a_folder_or_with_a_damaged_file_costs_nothing_known(clock, tmp_path):
    folder = RunDir(tmp_path / "run")
    meter = Meter(folder, devices=1, gpu=False)
    with meter.at("training"):
        clock(1)
        meter.enter()
        assert not folder.path.exists() and folder.read_cost() == {}
        folder.path.mkdir()
        meter.enter()
    assert folder.read_cost()["training_seconds"] == 1
    for damaged in ("", "{", "[1, 2]", "3"):
        folder.cost.write_text(damaged)
        assert folder.read_cost() == {}
