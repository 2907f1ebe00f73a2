"""Runs in two processes: one of them killed, and started by torchrun."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tasft.errors import UserError
from tasft.execute import execute
from tasft.prepare import prepare
from tests.small import SMALL, composed, lay_out

ALL = [
    "loss=emd", "data.toxic=3", "data.toxic_source.path=toxic.jsonl", "loss.share=0.1", "optimizer.lr=3e-3", "epochs=3",
    "data.contamination.policy=report", "trainer.checkpoint_every=2", "model.lora.dropout=0.3",
]  # fmt: skip
STEPS = 9  # 13 rows at 6


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the small model, rows and prompts; workers find this tasft there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TASFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    lay_out(tmp_path)
    return tmp_path


def prepared(*overrides):
    return prepare(composed("run", *ALL, *overrides))


def ranks_of(parent):
    """rank -> process id of the workers that a process has started."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            started_by = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            said = (process / "environ").read_bytes().split(b"\0")
        except OSError:  # gone, or not ours
            continue
        if started_by == parent:
            found |= {int(each.removeprefix(b"RANK=")): int(process.name) for each in said if each.startswith(b"RANK=")}
    return found


def same_numbers(folder, wanted):
    """Whether every line of metrics is there once, and is what `wanted` has, to 1e-5."""
    lines = folder.read_metrics()
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line, other in zip(lines, wanted.read_metrics(), strict=True):
        for key, value in other.items():
            assert line[key] == pytest.approx(value, rel=1e-5, abs=1e-6), (key, line["step"])


@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks in /proc")
def test_a_rank_is_killed_and_one_process_goes_on(project):
    alone, looked = execute(prepared("output_root=alone")), []

    def kill_a_rank(step):
        looked.append(step)
        os.kill(ranks_of(os.getpid())[1], signal.SIGKILL)

    with pytest.raises(UserError) as failed:
        execute(prepared("trainer.devices=2", "evaluate.every_n_steps=5"), looked=kill_a_rank)
    folder = prepared().folder  # the same with another number of processes
    assert str(failed.value) == (
        f"rank 1 of 2 was killed by SIGKILL: its log is {folder.path}/ranks/rank1.log;"
        " the same command goes on from the last checkpoint"
    )
    assert looked == [5]
    assert [file.name for file in folder.checkpoints.iterdir()] == ["step4.ckpt"]
    assert not ranks_of(os.getpid())
    assert json.loads(folder.environment.read_text())["world_size"] == 2
    same_numbers(execute(prepared()), alone)


def test_ranks_that_torchrun_has_started_join(project):
    alone = execute(prepared("output_root=alone"))
    said = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tasft.run",
         *SMALL, *ALL, "evaluate.at_start=true"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert said.stderr.count("finished: outputs") == 1
    folder = prepared().folder
    same_numbers(folder, alone)
    assert folder.finished
    assert folder.responses_present() == [("local", 0), ("local", STEPS)]
    assert json.loads(folder.environment.read_text())["world_size"] == 2
    assert not (folder.path / "ranks").exists()
