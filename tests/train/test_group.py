"""Who has started this process, and what cannot be."""

import pytest
from omegaconf import OmegaConf

from tasft.config import CONF
from tasft.errors import UserError
from tasft.schema import Trainer
from tasft.train import group as group_module
from tasft.train.group import (
    ALONE,
    Group,
    Stopped,
    check_alone,
    check_devices,
    group_of,
    to_start,
    visible_gpus,
    world_size,
)

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SRUN = {
    "SLURM_JOB_ID": "1203", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4",
}  # fmt: skip


def test_torchrun_says_all():
    group = group_of(TORCHRUN)
    assert group == Group(5, 8, 1, 4)
    assert not group.first


def test_srun_says_it_in_words_of_its_own():
    assert group_of(SRUN) == Group(3, 4, 1, 2, "gpu07:24624")
    assert group_of(SRUN | {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29400"}).master == "10.0.0.7:29400"
    assert group_of(SRUN | {"SLURM_JOB_ID": "1204"}).master != group_of(SRUN).master  # jobs that share a machine
    with pytest.raises(UserError, match="5 tasks on 2 machines: start as many on each"):
        group_of(SRUN | {"SLURM_STEP_NUM_TASKS": "5"})


def test_a_batch_script_is_no_rank_however_many_tasks_it_has_asked_for():
    script = {name: value for name, value in SRUN.items() if "STEP" not in name} | {"SLURM_PROCID": "0"}
    assert group_of(script) == ALONE
    assert group_of(SRUN | {"SLURM_STEP_NUM_TASKS": "1"}) == ALONE


def test_submitit_on_this_machine():
    local = {"SUBMITIT_LOCAL_JOB_ID": "77", "SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_GLOBALID": "1"}
    assert group_of(local | {"SUBMITIT_LOCAL_LOCALID": "1"}) == Group(1, 2, 1, 2, "127.0.0.1:15077")
    assert group_of(local | {"SUBMITIT_LOCAL_NTASKS": "1"}) == ALONE


def test_what_a_signal_has_ended_is_said_as_it_is():
    said = "stopped by SIGTERM after step 4, whose checkpoint is written: the same command goes on from there"
    assert str(Stopped(15, 4)) == said
    assert str(Stopped(15, 0)) == "stopped by SIGTERM before there was a checkpoint: the same command starts again"


def test_every_one_of_several_processes_refuses_to_do_what_is_for_one(monkeypatch):
    check_alone()
    for rank in ("0", "5"):
        monkeypatch.setattr(group_module, "joined", lambda rank=rank: group_of(TORCHRUN | {"RANK": rank}))
        with pytest.raises(UserError, match=r"start this command once, with trainer\.devices=<processes>"):
            check_alone()


def test_gpus_by_their_names(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-7,-1")
    assert visible_gpus() == ["3", "GPU-7"]


def trainer(name, **changed):
    loaded = OmegaConf.to_container(OmegaConf.load(CONF / "trainer" / f"{name}.yaml"))
    return Trainer(**loaded | changed)


@pytest.mark.parametrize(
    ("gpus", "asked", "sentence"),
    [
        (0, trainer("fsdp", accelerator="auto"), "fsdp deals a model out to GPUs, and PyTorch finds none"),
        (0, trainer("ddp"), "say how many processes, trainer.devices=2"),
        (0, trainer("cpu", nodes=2), "this is one process on one machine: start the command on all of them"),
        (2, trainer("ddp", devices=4), "trainer.devices=4, but this machine has 2 GPUs: give trainer.devices=2"),
        (1, trainer("gpu", devices=2), "this machine has 1 GPU: give trainer.devices=1"),
    ],
)  # fmt: skip
def test_processes_that_cannot_be_had(gpus, asked, sentence, monkeypatch):
    monkeypatch.setattr(group_module, "joined", lambda: ALONE)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    with pytest.raises(UserError, match=sentence):
        check_devices(asked)


@pytest.mark.parametrize(
    ("gpus", "asked", "sentence"),
    [
        (0, trainer("cpu", devices=4), "make 4 processes, but 8 were started"),
        (1, trainer("ddp"), "4 processes on this machine, but this one sees 1 GPU: .* --gpus-per-node"),
    ],
)
def test_ranks_that_are_not_those_asked_for(gpus, asked, sentence, monkeypatch):
    monkeypatch.setattr(group_module, "joined", lambda: group_of(TORCHRUN))
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    with pytest.raises(UserError, match=sentence):
        check_devices(asked)


def test_how_many_are_started_and_how_many_train(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr(group_module, "joined", lambda: ALONE)
    for asked, world in ((trainer("cpu"), 1), (trainer("cpu", devices=3), 3), (trainer("ddp"), 4)):
        check_devices(asked)
        assert (to_start(asked), world_size(asked)) == (world, world)
    monkeypatch.setattr(group_module, "joined", lambda: group_of(TORCHRUN))
    for asked in (trainer("auto"), trainer("ddp"), trainer("ddp", devices=4, nodes=2)):
        check_devices(asked)
        assert (to_start(asked), world_size(asked)) == (1, 8)  # those that are there are joined
