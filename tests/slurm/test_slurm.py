"""Cells as jobs of a real SLURM cluster of this one machine: an array, two tasks, a requeue."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.small import SMALL, lay_out

HERE = Path(__file__).parent
MISSING = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"no SLURM here ({', '.join(MISSING)}): apt-get install slurm-wlm munge"),
    pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="SLURM's daemons are started as root"),
]
ALL = [
    *SMALL, "loss=emd", "data.toxic_source.path=toxic.jsonl", "loss.share=0.1", "optimizer.lr=3e-4",
    "data.contamination.policy=report", "trainer.threads=1", "trainer.checkpoint_every=50",
]  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A folder with the small model in which SLURM's commands work."""
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run([HERE / "start", folder / "cluster"], capture_output=True, text=True, check=False)
    if started.returncode:
        subprocess.run([HERE / "stop", folder / "cluster"], check=False)
        pytest.fail(f"tests/slurm/start: {started.stdout}{started.stderr}")
    before, here = dict(os.environ), Path.cwd()
    paths = [str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ |= {
        "SLURM_CONF": str(folder / "cluster" / "slurm.conf"), "PYTHONPATH": os.pathsep.join(paths),
        "TASFT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "TMPDIR": str(folder),
    }  # fmt: skip
    os.chdir(folder)
    lay_out(folder)
    yield folder
    os.chdir(here)
    os.environ.clear()
    os.environ |= before
    subprocess.run([HERE / "stop", folder / "cluster"], check=False)


def command(*overrides):
    return [sys.executable, "-m", "tasft.run", *overrides[:1], *ALL, *overrides[1:]]  # -m wants to stand first


def run_of(root):
    (found,) = Path(root).glob("*/*/*/seed0-*")
    return found


def metrics(root):
    return [json.loads(line) for line in (run_of(root) / "metrics.jsonl").read_text().splitlines()]


def test_an_array_of_which_one_cell_fails_and_one_dies_has_the_numbers_of_the_basic_launcher(cluster):
    cells = [
        "seed=0",
        *(f"seed={i} +logger._target_=tests.test_sweep.{how}" for i, how in ((1, "break_down"), (2, "die"))),
    ]
    slurm = ["-m", "hydra/launcher=slurm_cpu", "data.toxic=3", "output_root=array", f"hydra.sweeper.cells={cells}"]
    process = subprocess.run(command(*slurm), capture_output=True, text=True, timeout=900, check=False)
    assert process.returncode == 1
    said = process.stderr
    assert "tasft: 3 cells: 3 to run (slurm_cpu)" in said and "3 cells: 1 done now, 2 failed" in said
    (broken,) = (line for line in said.splitlines() if line.startswith("tasft: failed: seed=1"))
    assert "logger (tests.test_sweep.break_down) does not work: out of order" in broken
    assert "out of order" in Path(broken.rpartition("(log: ")[2].removesuffix(")")).read_text()
    (dead,) = (line for line in said.splitlines() if line.startswith("tasft: failed: seed=2"))
    assert "its job left the queue without a word" in dead  # no accounts are kept here that would tell
    (script,) = Path("array/.submitit").rglob("*_submission.sh")
    assert "export SLURM_KILL_BAD_EXIT=1" in script.read_text().partition("srun")[0]
    alone = command("data.toxic=3", "output_root=basic")
    assert subprocess.run(alone, capture_output=True, check=False).returncode == 0
    assert (run_of("array") / "FINISHED").exists()
    assert (run_of("array") / "metrics.jsonl").read_bytes() == (run_of("basic") / "metrics.jsonl").read_bytes()


def test_two_tasks_join_and_go_on_after_a_requeue(cluster):
    long = ["data.toxic=3", "epochs=50"]
    joined = ["hydra/launcher=slurm_cpu", "hydra.launcher.tasks_per_node=2", "output_root=joined"]
    with open("said", "w") as out:
        process = subprocess.Popen(command("-m", *long, *joined), stdout=out, stderr=out)
    try:
        until(
            lambda: any(file.read_bytes().count(b"\n") > 10 for file in Path("joined").rglob("metrics.jsonl")), process
        )
        jobs = subprocess.run(["squeue", "-h", "-o", "%i"], capture_output=True, text=True, check=True).stdout.split()
        subprocess.run(["scontrol", "requeue", jobs[0]], check=True)
        until(lambda: "PENDING" in state(jobs[0]), process)
        (stopped,) = (int(file.stem.removeprefix("step")) for file in (run_of("joined") / "checkpoints").iterdir()
                      if file.stem.removeprefix("step") != "50")  # fmt: skip
        assert [row["step"] for row in metrics("joined")] == list(range(1, stopped + 1))
        subprocess.run(["scontrol", "update", f"jobid={jobs[0]}", "StartTime=now"], check=True)  # not in two minutes
        until(lambda: (run_of("joined") / "FINISHED").exists(), process)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
    assert subprocess.run(command(*long, "output_root=alone"), capture_output=True, check=False).returncode == 0
    got, wanted = metrics("joined"), metrics("alone")
    assert len(got) == len(wanted) == 150
    assert json.loads((run_of("joined") / "environment.json").read_text())["world_size"] == 2
    for a, b in zip(got, wanted, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6), a["step"]  # 150 steps make more of a rounding than ten


def state(job):
    return subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True, check=False).stdout


def until(holds, process, seconds=300):
    """Wait for what SLURM does in its own time, for a sweep that is still there."""
    end = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None and time.monotonic() < end, Path("said").read_text()[-3000:]
        time.sleep(0.3)
