"""A grid of cells: real sweeps of small runs through Hydra's launchers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from lightning.pytorch.loggers.logger import DummyLogger

from tasft.cell import run_cell
from tasft.config import CONF, entry, register
from tasft.errors import UserError
from tasft.result.store import RunDir
from tasft.sweep import expand, expected_cost
from tests.small import SMALL, lay_out

FEW = [*SMALL, "epochs=1", "data.toxic_source.path=toxic.jsonl", "loss.share=0.1", "evaluate.max_new_tokens=2"]


def expanded(*arguments, lines=("",), params=None):
    """The cells of a command line, each a tuple of overrides."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        config = hydra.compose_config("run", list(arguments), RunMode.MULTIRUN)
        return expand(lines, params or {}, arguments, config, hydra.config_loader)


def test_a_grid_is_the_union_of_its_lines():
    lines = ["loss=emd data.toxic=1000,500", "loss=sft data.safe_answers=300,100 data.toxic=0"]
    assert expanded(lines=lines) == [
        ("loss=emd", "data.toxic=1000"),
        ("loss=emd", "data.toxic=500"),
        ("loss=sft", "data.safe_answers=300", "data.toxic=0"),
        ("loss=sft", "data.safe_answers=100", "data.toxic=0"),
    ]


def test_the_command_line_wins_over_a_line_and_a_line_over_params():
    lines, params = ["loss=emd,nlcl data.toxic=1,2"], {"loss": "kto", "epochs": 9}
    assert expanded("data.toxic=7", "seed=1,2", lines=lines, params=params) == [
        (f"loss={loss}", "epochs=9", "data.toxic=7", f"seed={seed}") for loss in ("emd", "nlcl") for seed in (1, 2)
    ]


def test_a_line_refers_to_the_config():
    lines = ["data.toxic=${prefill.tokens} loss=${loss.name} epochs=${epochs}"]
    cells = expanded("prefill.tokens=[3,4]", "loss=nlcl", "epochs=5", lines=lines)
    assert {cell[0] for cell in cells} == {"data.toxic=3", "data.toxic=4"}
    assert all({"loss=nlcl", "epochs=5"} <= set(cell) for cell in cells)
    with pytest.raises(UserError, match=r"hydra\.sweeper\.cells: there is no value \$\{seeds\} for 'seed=\$\{seeds\}'"):
        expanded(lines=["seed=${seeds}"])


def test_a_cell_of_two_lines_is_one_cell():
    assert len(expanded(lines=["loss=emd data.toxic=1,2", "loss=emd data.toxic=2,3"])) == 3


def test_what_cells_will_cost_by_hand(tmp_path):
    def finished(run, **cost):
        (tmp_path / run).mkdir(parents=True)
        RunDir(tmp_path / run).cost.write_text(json.dumps(cost))
        RunDir(tmp_path / run).finish()

    finished("m/emd/a/seed0", training_seconds=10, answering_seconds=2, gpu_hours=0.5)
    finished("m/emd/b/seed0", training_seconds=20, answering_seconds=4, gpu_hours=1.5)
    finished("m/sft/a/seed0", training_seconds=3, answering_seconds=0, gpu_hours=0)
    (tmp_path / "m" / "emd" / "c" / "seed0").mkdir(parents=True)  # unfinished: says nothing
    emd, nlcl = tmp_path / "m/emd/d/seed1", tmp_path / "m/nlcl/d/seed1"
    assert expected_cost([emd, emd]) == (36, 2, 0)  # (12 + 24) / 2 each
    assert expected_cost([emd, nlcl]) == (18 + 13, 1 + 2 / 3, 0)  # of another loss: all of the model
    assert expected_cost([emd, tmp_path / "other/emd/d/seed1", None]) == (18, 1, 2)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a small model, rows and prompts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TASFT_CACHE", str(tmp_path / "cache"))
    lay_out(tmp_path)
    return tmp_path


def swept(monkeypatch, *overrides):
    """Run a grid in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["tasft.run", "-m", *FEW, *overrides])
    return entry(run_cell, "run")


def state(folder):
    return {file: file.stat().st_mtime_ns for file in folder.glob("outputs/*/*/*/*/**/*") if file.is_file()}


def test_a_grid_ends_with_what_became_of_each_cell_and_again_runs_what_is_missing(project, monkeypatch, capfd):
    grid = ["loss=sft,emd", "data.toxic=3,99,2", "trainer.log_every=1"]
    assert swept(monkeypatch, *grid) == 1
    said = capfd.readouterr().err
    assert "6 cells: 2 the same run as another, 1 failed, 3 to run (basic)" in said
    assert "not known before the first one is done" in said
    assert "4/4 done: loss=emd data.toxic=2" in said
    assert "6 cells: 3 done now, 2 the same run as another, 1 failed" in said
    why = "data.toxic=99, but toxic.jsonl has only 4 usable rows"
    assert said.count(f"tasft: cannot run: loss=emd data.toxic=99: {why}") == 1  # at once,
    assert said.count(f"tasft: failed: loss=emd data.toxic=99: {why}") == 1  # and in the end
    runs = [RunDir(file.parent) for file in project.glob("outputs/model/*/*/*/FINISHED")]
    assert sorted(run.path.parent.name.partition("-")[0] for run in runs) == ["toxic0", "toxic2", "toxic3"]
    for run in runs:
        assert "fine-tuning" in run.log.read_text() and "finished: " in run.log.read_text()
        cost = run.read_cost()
        assert cost["training_seconds"] > 0 and cost["answering_seconds"] > 0 and cost["devices"] == 1

    before = state(project)
    assert swept(monkeypatch, *grid) == 1
    assert "6 cells: 3 finished before, 2 the same run as another, 1 failed, 0 to run" in capfd.readouterr().err
    assert state(project) == before
    (project / "toxic.jsonl").write_text(
        (project / "toxic.jsonl").read_text()
        + "".join(json.dumps({"prompt": f"toxic {i}?", "response": f"It is {i}."}) + "\n" for i in range(10, 110))
    )
    assert swept(monkeypatch, *grid, "data.toxic=99") == 0
    said = capfd.readouterr().err
    assert "by what finished cells of the same model took" in said
    assert state(project).items() >= before.items()


def test_a_finished_cell_that_is_asked_more_is_not_skipped(project, monkeypatch, capfd):
    assert swept(monkeypatch, "attack.goals=[1,2]", "hydra.sweeper.cells=['seed=${attack.goals}']") == 0
    capfd.readouterr()
    assert swept(monkeypatch, "seed=1,2", "judge=[refusal,text]") == 0
    assert "2 to run" in capfd.readouterr().err
    assert len(list(project.glob("outputs/*/*/*/*/scores/*.text.jsonl"))) == 2
    logs = {file: file.read_text() for file in project.glob("outputs/*/*/*/*/log.txt")}
    assert swept(monkeypatch, "seed=1,2", "judge=[refusal,text]", "resume=false") == 0
    for file, before in logs.items():  # of the new training from its first line, and of no other
        assert file.read_text().startswith("--- ") and "resume=false: starting" in file.read_text()
        assert before not in file.read_text()
    capfd.readouterr()
    assert swept(monkeypatch, "seed=1,2", "judge=[refusal,text]") == 0
    assert "2 finished before, 0 to run" in capfd.readouterr().err
    assert not list(project.glob("outputs/.sweeps"))  # nothing is left of grids that went well


def test_a_cell_without_a_weight_fails_alone(project, monkeypatch, capfd):
    assert swept(monkeypatch, "loss=emd", "data.toxic=3", "loss.share=null,0.2") == 1
    said = capfd.readouterr().err
    assert said.count("loss.share=null: no tuned weight for loss=emd model=model data.toxic=3") == 2
    assert "2 cells: 1 failed, 1 to run" in said and "2 cells: 1 done now, 1 failed" in said


MISTAKES = {
    "loss.weigth=1,2": "there is no key loss.weigth: did you mean loss.weight?",
    "loss=emd,emdd": "loss=emdd: no such choice; did you mean emd?",
    "hydra/launcher=joblib": "hydra/launcher=joblib is not installed: pip install 'tasft[launchers]'",
    "hydra/launcher=basik": "hydra/launcher=basik: no such choice; did you mean basic?",
    "hydra.sweeper.cells=['loss=${lost}']": "Interpolation key 'lost' not found",
    "output_root=/dev/null/x seed=1,2": "cannot write /dev/null/x",
    "judge=[refusal,pair] judge.pair.key=MY_KEY,sk-secret123": "judge.pair.key should be the name of an environment",
}


@pytest.mark.parametrize("overrides", MISTAKES)
def test_a_mistake_in_the_grid_is_one_sentence_before_anything_starts(overrides, project, monkeypatch, capfd):
    Plugins.instance()  # whose first call fills the store
    if "joblib" in overrides:
        monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], "joblib.yaml")
    before = sorted(project.rglob("*"))
    assert swept(monkeypatch, *overrides.split()) == 1
    said = capfd.readouterr().err
    assert said.startswith(f"tasft: {MISTAKES[overrides]}") and len(said.splitlines()) == 1 and "secret" not in said
    assert sorted(project.rglob("*")) == before


def test_a_failed_cell_has_a_log(project, monkeypatch, capfd):
    broken = "+logger._target_=tests.test_sweep.break_down"
    assert swept(monkeypatch, f"hydra.sweeper.cells=['seed=1 {broken}','seed=2']") == 1
    said = capfd.readouterr().err
    (line,) = (line for line in said.splitlines() if line.startswith("tasft: failed: seed=1"))
    why, _, log = line.removesuffix(")").partition(" (log: ")
    assert "logger (tests.test_sweep.break_down) does not work: out of order" in why
    kept = open(log).read()
    assert "does not work: out of order" in kept and "seed=1" in kept
    assert "2 cells: 1 done now, 1 failed" in said


SLURM = {
    "slurm_gpu": "hydra.launcher.gpus_per_node=4 trainer=ddp",
    "slurm_gpu loss=sft": "hydra.launcher.nodes=2 hydra.launcher.tasks_per_node=4 trainer=ddp trainer.nodes=2"
    " trainer.devices=4",
    "submitit_slurm": "trainer=fsdp",
    "slurm_cpu": "trainer=gpu",
}


@pytest.mark.parametrize("launcher", SLURM)
def test_cells_for_machines_with_gpus_are_planned_on_one_without(launcher, project, monkeypatch, capfd):
    monkeypatch.setenv("PATH", "")  # no SLURM, wherever the test runs
    grid = [f"hydra/launcher={launcher.split()[0]}", *launcher.split()[1:], *SLURM[launcher].split(), "seed=1,2"]
    assert swept(monkeypatch, *grid) == 1
    said = capfd.readouterr().err
    assert f"2 cells: 2 to run ({launcher.split()[0]})" in said
    assert 'does not work: RuntimeError: Could not detect "srun", are you indeed on a slurm cluster?' in said


def break_down(**_):
    raise RuntimeError("out of order")


def die(**_):
    """Stands for what kills a process: no memory left."""
    os._exit(9)


def note_gpus(**_):
    """A logger that logs nothing; adds a line that says which GPUs its process sees."""
    with open("gpus.txt", "a") as file:
        file.write(os.environ["CUDA_VISIBLE_DEVICES"] + "\n")
    return DummyLogger()


def test_launchers_give_the_same_numbers_and_a_dying_process_stops_no_other_cell(project, monkeypatch, capfd):
    numbers, seen = {}, {}
    cells = [f"seed={seed} +logger._target_=tests.test_sweep.note_gpus" for seed in (1, 2)]
    dying = "seed=3 +logger._target_=tests.test_sweep.die"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)  # the cells will find none, and compute on the CPU
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    for launcher in ("basic", "joblib", "local"):
        more = [f"hydra/launcher={launcher}", f"output_root={launcher}", "loss=emd", "data.toxic=3", "trainer=auto"]
        more += ["hydra.launcher.n_jobs=3"] if launcher == "joblib" else []
        lines = [dying, *cells] if launcher == "joblib" else cells
        assert swept(monkeypatch, *more, f"hydra.sweeper.cells={lines}") == (launcher == "joblib")
        said = capfd.readouterr().err
        if launcher == "joblib":
            assert "tasft: 2 at a time: of 2 GPUs a cell takes 1" in said
            assert "failed: seed=3 " in said and "its process died without a word: killed, or out of memory" in said
            assert "3 cells: 2 done now, 1 failed" in said
            assert "fine-tuning" not in open(said.rpartition("(log: ")[2].partition(")")[0]).read()
        runs = sorted(file.parent for file in (project / launcher).glob("*/*/*/*/FINISHED"))
        assert [run.name.partition("-")[0] for run in runs] == ["seed1", "seed2"]
        assert all("finished: " in RunDir(run).log.read_text() for run in runs)
        numbers[launcher] = [(run.name, (run / "metrics.jsonl").read_bytes()) for run in runs]
        seen[launcher] = Path("gpus.txt").read_text().split()
        Path("gpus.txt").unlink()
    assert numbers["basic"] == numbers["joblib"] == numbers["local"]
    assert seen["basic"] == ["4,7", "4,7"] and sorted(seen["local"]) == ["4", "7"]
    assert set(seen["joblib"]) <= {"4", "7"}  # those that the dying process took with it may find either free


def test_killed_in_the_middle_no_finished_cell_is_repeated(project, monkeypatch, capfd):
    grid = ["seed=1,2,3,4,5,6"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tasft.run", "-m", *FEW, *grid],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    while not (finished := list(project.glob("outputs/*/*/*/*/FINISHED"))):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = list(project.glob("outputs/*/*/*/*/FINISHED"))
    before = {file: at for file, at in state(project).items() if (file.parent / "FINISHED") in finished}
    capfd.readouterr()
    assert swept(monkeypatch, *grid) == 0
    said = capfd.readouterr().err
    assert f"6 cells: {len(finished)} finished before, {6 - len(finished)} to run" in said
    assert len(list(project.glob("outputs/*/*/*/*/FINISHED"))) == 6
    assert state(project).items() >= before.items()
