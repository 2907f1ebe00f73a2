"""Put the module, its batches and Lightning's trainer together: checkpoints, metrics, a progress bar, resume."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from tasft.data.steps import StepBatch, StepBatches
from tasft.progress import Progress
from tasft.train.group import ALONE, Group, Stopped, noticing_losses
from tasft.train.module import FineTuning, StepResult
from tasft.train.shard import frozen_names, whole

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Watch:
    """What is done with the model during a fit: `look(step)` after every `every` steps. It has to change nothing."""

    look: Callable[[int], None]
    every: int


@dataclass(frozen=True)
class Files:
    """Where a fit writes: its checkpoints, and one call per line of metrics and of speed."""

    checkpoints: Path
    metrics: Callable[[dict[str, Any]], None]
    speed: Callable[[dict[str, Any]], None]


class StepRecords(Callback):
    """Metrics to their file and to the logger, every `log_every` steps and after the last one."""

    def __init__(self, files: Files, log_every: int, total: int) -> None:
        self.files, self.log_every, self.total = files, log_every, total
        self.tokens, self.since = 0, time.perf_counter()

    def on_train_start(self, *_: Any) -> None:
        """Forget the peak memory of trainings that this process has done before."""
        if torch.cuda.is_initialized():  # a training on the CPU starts no CUDA
            torch.cuda.reset_peak_memory_stats()

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the clock of the first step; checkpoints and set-up do not count."""
        if self.tokens == 0:
            self.since = time.perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, module: FineTuning, *_: Any) -> None:
        """Write what the step measured."""
        result = _result(module)
        self.tokens += result.tokens
        if result.step % self.log_every and result.step != self.total:
            return
        seconds = time.perf_counter() - self.since
        speed = {"step": result.step, "seconds": seconds, "tokens_per_second": self.tokens / seconds, **_memory()}
        if trainer.is_global_zero:
            self.files.metrics(result.metrics())
            self.files.speed(speed)
        for logger in trainer.loggers:
            logged = {f"train/{k}": v for k, v in (result.metrics() | speed).items() if k != "step"}
            logger.log_metrics(logged, step=result.step)
        self.tokens = 0

    def pause(self, seconds: float) -> None:
        """Leave out time that was no training."""
        self.since += seconds


class ProgressBar(Callback):
    """A bar with the step, both loss terms, tokens per second and the time left, on the first rank."""

    def __init__(self, total: int, start: int) -> None:
        self.total, self.start, self.tokens = total, start, 0
        self.bar: Progress | None = None

    def on_train_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Show the bar."""
        if trainer.is_global_zero:
            self.bar = Progress(self.total, "fine-tuning", "step", self.start)
            self.began = time.perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, module: FineTuning, *_: Any) -> None:
        """Move on by one step."""
        if self.bar is None:
            return
        result = _result(module)
        self.tokens += result.tokens
        speed = self.tokens / (time.perf_counter() - self.began)
        self.bar.advance(1, f"safe {result.safe_loss:.3f} toxic {result.toxic_loss:.3f} {speed:,.0f} tokens/s")

    def pause(self, seconds: float) -> None:
        """Leave out time that was no training."""
        if self.bar is not None:
            self.began += seconds

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Leave the bar as it stands."""
        if self.bar is not None:
            self.bar.close()


class Leaving(Callback):
    """Ends the training when a signal says so: all ranks after the same step, with a checkpoint of it.

    SLURM sends SIGTERM, or what `sbatch --signal` names, some time before it takes a job away.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self, checkpoints: Path) -> None:
        self.checkpoints = checkpoints
        self.signum: int = signal.SIGTERM  # where it was another rank that got one

    def on_train_start(self, trainer: lightning.Trainer, module: FineTuning) -> None:
        """Listen. Lightning's own handlers are in place by now, and what was there before comes back after the fit."""

        def note(signum: int, _: Any) -> None:
            self.signum, module.asked_to_leave = signum, True

        if threading.current_thread() is threading.main_thread():
            for each in self.SIGNALS:
                signal.signal(each, note)

    def on_train_batch_end(self, trainer: lightning.Trainer, module: FineTuning, *_: Any) -> None:
        """Leave, where any rank has been told to."""
        if module.leaving:
            step = _result(module).step
            trainer.save_checkpoint(self.checkpoints / f"step{step}.ckpt")
            raise Stopped(self.signum, step)


class Watching(Callback):
    """Looks at the model after every so many steps, before the next one begins.

    By then the step's checkpoint is written: what a kill interrupts here is not trained again. The first rank looks,
    the others wait.
    """

    def __init__(self, watch: Watch, clocks: Sequence[StepRecords | ProgressBar], group: Group) -> None:
        self.watch, self.clocks, self.group = watch, clocks, group

    def on_train_batch_start(self, trainer: lightning.Trainer, module: FineTuning, batch: StepBatch, _: int) -> None:
        """Look where it is time to."""
        if batch.step == 0 or batch.step % self.watch.every:
            return
        began = time.perf_counter()
        with whole(module.model):
            self.group.first_does(partial(self.watch.look, batch.step))
        for clock in self.clocks:
            clock.pause(time.perf_counter() - began)


def fit(
    module: FineTuning,
    batches: StepBatches,
    files: Files,
    accelerator: str = "auto",
    log_every: int = 1,
    checkpoint_every: int = 50,
    logger: Logger | None = None,
    resume_from: Path | None = None,
    watch: Watch | None = None,
    group: Group = ALONE,
) -> None:
    """Train to the end of `batches`, from `resume_from` where given, together with the other ranks of `group`.

    `watch` looks after every so many steps, but not after the last one, when the module is the caller's again.
    UserError where the loss stops being finite, Stopped where a signal came, Lost where another rank is gone.
    """
    if resume_from is not None:
        batches.start = saved_step(resume_from)
        log.info("going on from step %d of %d", batches.start, len(batches))
        if batches.start == len(batches):
            module.load_state_dict(torch.load(resume_from, weights_only=True)["state_dict"], strict=False)
            return
        for file in files.checkpoints.glob("step*.ckpt") if group.first else ():
            if file != resume_from:
                file.unlink()  # of a training that was stopped: Lightning deletes only what it saves in this one
    checkpoint = ModelCheckpoint(
        dirpath=files.checkpoints,
        filename="step{step}",
        auto_insert_metric_name=False,
        every_n_train_steps=checkpoint_every,
        save_on_train_epoch_end=False,
        save_top_k=1,
        enable_version_counter=False,
    )
    records, bar = StepRecords(files, log_every, len(batches)), ProgressBar(len(batches), batches.start)
    watching = [Watching(watch, [records, bar], group)] if watch is not None else []
    if group.world > 1:
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, frozen_names(module))
    trainer = lightning.Trainer(
        accelerator=accelerator,
        devices=group.local_world,
        num_nodes=group.world // group.local_world,
        strategy=DDPStrategy() if group.world > 1 else "auto",
        # said here, as Lightning would take a batch script of SLURM's for one of several ranks
        plugins=[TorchElasticEnvironment() if group.world > 1 else LightningEnvironment()],
        max_epochs=1,  # to Lightning the whole run is one epoch: its batches know theirs
        callbacks=[*watching, records, bar, Leaving(files.checkpoints), checkpoint],
        logger=logger or False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=log_every,
    )
    try:
        with noticing_losses():
            trainer.fit(module, batches, ckpt_path=str(resume_from) if resume_from else None, weights_only=True)
            trainer.save_checkpoint(files.checkpoints / f"step{len(batches)}.ckpt")
    except SystemExit:
        raise KeyboardInterrupt from None  # which Lightning turns into an exit without a word


def last_checkpoint(folder: Path) -> Path | None:
    """The readable checkpoint of the highest step in `folder`; None where there is none."""
    for file in sorted(folder.glob("step*.ckpt"), key=saved_step, reverse=True):
        try:
            torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # whatever a file cut short makes the unpickler say
            log.warning("%s is damaged: going on from the one before", file)
        else:
            return file
    return None


def saved_step(checkpoint: Path) -> int:
    """The number of optimizer steps that the checkpoint has behind it."""
    return int(checkpoint.stem.removeprefix("step"))


def _result(module: FineTuning) -> StepResult:
    assert module.result is not None, "a batch ended without a training step"
    return module.result


def _memory() -> dict[str, float]:
    """Peak GPU memory of this training in MiB; nothing without a GPU."""
    return {"peak_memory_mib": torch.cuda.max_memory_allocated() / 2**20} if torch.cuda.is_available() else {}
