"""The processes that train one run together: how many there are, who this one is, and how they agree."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TypeVar

import torch
import torch.distributed as dist
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from tasft.errors import UserError
from tasft.schema import Trainer

Value = TypeVar("Value")

# A rank that dies is noticed by who has started it; the others may wait for as long as the first one evaluates.
PATIENCE = timedelta(days=7)


class Stopped(Exception):
    """A training that a signal has ended in good order: its checkpoint after `step` is written; at 0 there is none."""

    def __init__(self, signum: int, step: int) -> None:
        where = f"after step {step}, whose checkpoint is written" if step else "before there was a checkpoint"
        again = "goes on from there" if step else "starts again"
        super().__init__(f"stopped by {signal.Signals(signum).name} {where}: the same command {again}")
        self.signum, self.step = signum, step


class Lost(UserError):
    """Another rank of the group is gone."""


@dataclass(frozen=True)
class Group:
    """One of `world` processes that train together, on `local_world` devices of each machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    master: str | None = None  # address:port of the first rank, where they meet

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files, evaluates and answers; the others only train."""
        return self.rank == 0

    def meet(self, device: str, at: str | None = None) -> None:
        """Wait until all ranks are there, once in a process. `device` is cpu or cuda, `at` another place to meet."""
        if self.world == 1 or dist.is_initialized():
            return
        # where Lightning looks
        os.environ |= {"RANK": str(self.rank), "WORLD_SIZE": str(self.world), "LOCAL_RANK": str(self.local_rank)}
        os.environ["GROUP_RANK"] = str(self.rank // self.local_world)
        if self.master is not None:
            os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = self.master.rsplit(":", 1)
        if device == "cuda":
            torch.cuda.set_device(self.local_rank)
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo", init_method=at, timeout=PATIENCE,
            rank=self.rank, world_size=self.world,
        )  # fmt: skip

    def agree(self, value: Value) -> Value:
        """The first rank's `value`, on every rank; Lost where it cannot be had."""
        if self.world == 1:
            return value
        told = [value]
        with noticing_losses():
            dist.broadcast_object_list(told, src=0)
        return told[0]

    def first_does(self, action: Callable[[], object]) -> None:
        """Have the first rank do `action` while the others wait; where it fails, Lost on the others."""
        failed: Exception | None = None
        if self.first:
            try:
                action()
            except Exception as error:
                failed = error
        if failed is not None and self.world > 1:
            self.agree(str(failed) or type(failed).__name__)
        if failed is not None:
            raise failed
        said = self.agree(None)
        if said is not None:
            raise Lost(f"rank 0 has stopped: {said}")


ALONE = Group()


@contextmanager
def noticing_losses() -> Iterator[None]:
    """Turns what a broken connection to another rank raises into one sentence."""
    try:
        yield
    except RuntimeError as error:
        if dist.is_initialized() and (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise Lost(
                "another rank of this run is gone, and its own log says why: the same command goes on from the last"
                " checkpoint"
            ) from error
        raise


@cache
def joined() -> Group:
    """The group that torchrun, srun or submitit has started this process in; ALONE where there is none."""
    return group_of(os.environ)


def group_of(environment: Mapping[str, str]) -> Group:
    """The group that environment variables describe; ALONE where they describe none."""

    def number(name: str, otherwise: int = 0) -> int:
        return int(environment.get(name) or otherwise)

    if "TORCHELASTIC_RUN_ID" in environment:
        world = number("WORLD_SIZE", 1)
        return Group(number("RANK"), world, number("LOCAL_RANK"), number("LOCAL_WORLD_SIZE", world))
    if (
        number("SLURM_STEP_NUM_TASKS") > 1
    ):  # of srun: a batch script by itself has none, however many tasks it asked for
        tasks, nodes = number("SLURM_STEP_NUM_TASKS"), number("SLURM_STEP_NUM_NODES", 1)
        if tasks % nodes:
            raise UserError(
                f"{tasks} tasks on {nodes} machines: start as many on each, srun --ntasks-per-node=<GPUs of one>"
            )
        from lightning.fabric.plugins.environments import SLURMEnvironment  # slow to import

        host = SLURMEnvironment.resolve_root_node_address(environment.get("SLURM_STEP_NODELIST", "127.0.0.1"))
        job = number("SLURM_JOB_ID") * 8 + number("SLURM_STEP_ID")
        port = number("MASTER_PORT", 15_000 + job % 16_000)  # one that the other jobs of this machine do not have
        return Group(
            number("SLURM_PROCID"), tasks, number("SLURM_LOCALID"), tasks // nodes,
            f"{environment.get('MASTER_ADDR', host)}:{port}",
        )  # fmt: skip
    if number("SUBMITIT_LOCAL_NTASKS") > 1:
        tasks, port = number("SUBMITIT_LOCAL_NTASKS"), 15_000 + number("SUBMITIT_LOCAL_JOB_ID") % 16_000
        rank = number("SUBMITIT_LOCAL_GLOBALID")
        return Group(rank, tasks, number("SUBMITIT_LOCAL_LOCALID"), tasks, f"127.0.0.1:{port}")
    return ALONE


def check_alone() -> None:
    """UserError in each of several processes that torchrun, srun or submitit has started as one group."""
    if joined().world > 1:
        raise UserError(
            "of several processes only those of tasft.run train together: start this command once, with"
            " trainer.devices=<processes> instead of torchrun or srun"
        )


def cores() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """The GPUs that this process sees, by their names in CUDA_VISIBLE_DEVICES. Starts no CUDA."""
    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(i) for i in range(count)] if named is None else named.split(",")[:count]


def check_devices(trainer: Trainer) -> None:
    """UserError where the processes that `trainer` asks for cannot be had, or are not those that were started."""
    gpus = 0 if trainer.accelerator == "cpu" else torch.cuda.device_count()
    if trainer.strategy == "fsdp" and not gpus:
        raise UserError(
            "trainer.strategy=fsdp deals a model out to GPUs, and PyTorch finds none: use trainer=ddp"
            " trainer.devices=<processes>, or trainer=cpu"
        )
    if trainer.accelerator == "gpu" and not gpus:
        raise UserError(
            "trainer.accelerator=gpu, but PyTorch finds no GPU: use trainer=cpu, or install a CUDA build of PyTorch"
        )
    group = joined()
    if group.world > 1:
        _check_joined(trainer, group, gpus)
    elif trainer.nodes > 1:
        raise UserError(
            f"trainer.nodes={trainer.nodes}, but this is one process on one machine: start the command on all of them"
            " with torchrun or srun (docs/clusters.md)"
        )
    elif trainer.devices is None and not gpus:
        raise UserError("trainer.devices=null means every GPU, and PyTorch finds none: say how many processes,"
                        " trainer.devices=2")  # fmt: skip
    elif gpus and (trainer.devices or 1) > gpus:
        raise UserError(
            f"trainer.devices={trainer.devices}, but this machine has {gpus} GPU{'s' * (gpus > 1)}:"
            f" give trainer.devices={gpus}"
        )


def _check_joined(trainer: Trainer, group: Group, gpus: int) -> None:
    asked = None if trainer.devices is None else trainer.devices * trainer.nodes
    if asked not in (None, 1, group.world):
        raise UserError(
            f"trainer.devices={trainer.devices} and trainer.nodes={trainer.nodes} make {asked} processes, but"
            f" {group.world} were started: leave both out, or start as many"
        )
    if gpus and group.local_rank >= gpus:
        raise UserError(
            f"{group.local_world} processes on this machine, but this one sees {gpus} GPU{'s' * (gpus > 1)}: start one"
            " for each, and let each see all of them (SLURM: --gpus-per-node, not --gpus-per-task)"
        )
    sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if sweep and "submitit" not in str(HydraConfig.get().launcher["_target_"]):
        raise UserError(
            "-m starts a run for each cell, and every one of the processes that torchrun or srun has started would do"
            " so: start it once, with trainer.devices=<processes>, or with hydra/launcher=submitit_slurm"
        )


def to_start(trainer: Trainer) -> int:
    """How many processes the run is to be dealt to by this one; 1 where it trains by itself, or is one of a group."""
    return 1 if joined().world > 1 else trainer.devices or torch.cuda.device_count()


def world_size(trainer: Trainer) -> int:
    """How many processes train the run."""
    return max(joined().world, to_start(trainer))
