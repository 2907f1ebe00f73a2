"""The study on disk: which λ is tried next, by whom, and which trials are stopped. The only user of Optuna.

A trial is claimed under a lock of the study, and its own lock is held while it runs: the system lets go of it when a
process dies, so whoever comes next takes that trial up again. λ of a trial depends on the search's seed, the trial's
number and the trials before it alone, so a search that was killed goes on as it would have gone.
"""

import math
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from tasft.errors import UserError
from tasft.schema import Search
from tasft.search.checks import locked
from tasft.search.objective import keeps_limits

optuna.logging.set_verbosity(optuna.logging.WARNING)

AGAIN = "again"  # of a trial: the number of the failed one that it is in place of
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class WorseThanMedian(BasePruner):
    """Stops a trial that at this step is worse than the median of those that ended well, at the same step.

    Optuna's MedianPruner takes the best of all steps so far, as if the best checkpoint counted; here the last one does.
    Trials that missed their limits are not compared with: too large a λ does less harm early on, and misses them later.
    """

    def __init__(self, after: int, warmup: int) -> None:
        self.after, self.warmup = after, warmup

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether to stop `trial` at its last reported step."""
        step = trial.last_step
        if step is None or step < self.warmup:
            return False
        completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        others = [
            other.intermediate_values[step]
            for other in completed
            if step in other.intermediate_values and other.value is not None and keeps_limits(other.value)
        ]
        return len(others) >= self.after and trial.intermediate_values[step] > median(others)


def pruner(settings: Search, every: int | None, steps: int) -> BasePruner:
    """What stops hopeless trials of `steps` steps that are looked at every `every` ones."""
    if settings.pruner is None or every is None:
        return NopPruner()
    warmup = math.ceil(settings.warmup * steps)
    if settings.pruner == "halving":
        return SuccessiveHalvingPruner(min_resource=max(warmup, every), reduction_factor=2)
    return WorseThanMedian(settings.prune_after, warmup)


def evenly(low: float, high: float, count: int) -> list[float]:
    """`count` values from `low` to `high`, evenly on a log scale; the middle for one."""
    if count == 1:
        return [math.sqrt(low * high)]
    return [low * (high / low) ** (i / (count - 1)) for i in range(count)]


def rounded(value: float) -> float:
    """Three significant digits: λ as it stands in commands and tables."""
    return float(f"{value:.3g}")


@dataclass(frozen=True)
class Claim:
    """A trial that this process is to run; `release` once it has ended."""

    trial: Trial
    value: float  # of what is searched over
    lock: FileLock


class LambdaStudy:
    """The trials of a search in `folder`, which other processes may run, too."""

    def __init__(self, folder: Path, settings: Search, seed: int, prune: BasePruner) -> None:
        self.folder, self.settings, self.seed = folder, settings, seed
        assert settings.low is not None and settings.high is not None  # checked by the command
        self.low, self.high = settings.low, settings.high
        even = settings.trials if settings.sampler == "grid" else min(settings.startup, settings.trials)
        self.fixed = evenly(self.low, self.high, even)
        journal = folder / "study.journal"
        with self.lock("study"):
            try:
                # Optuna's own lock outlives a killed process by half a minute; this one goes with it
                lock: Any = self.lock("journal")
                storage = JournalStorage(JournalFileBackend(str(journal), lock))
                self.study = optuna.create_study(
                    storage=storage, pruner=prune, study_name="search", direction="minimize", load_if_exists=True
                )
            except (ValueError, KeyError) as error:  # of a line that is no JSON, or no record of Optuna's
                raise UserError(f"{journal} is damaged ({error}): mend it, or move {folder} away") from None
            self._queue_failed()

    def lock(self, name: str, timeout: float = -1) -> FileLock:
        """A lock among the processes of this search."""
        return locked(self.folder, name, timeout)

    def trials(self) -> list[FrozenTrial]:
        """One trial for each place in the search: of those that were tried again, the last."""
        every = self.study.get_trials(deepcopy=False)
        replaced = {trial.user_attrs[AGAIN] for trial in every if AGAIN in trial.user_attrs}
        return [trial for trial in every if trial.number not in replaced]

    def claim(self) -> Claim | None:
        """The next trial for this process: a dead process's, one that waits, or a new one; None where there is none."""
        with self.lock("study"):
            trials = self.trials()
            for frozen in trials:
                if frozen.state == TrialState.RUNNING:
                    lock = self.lock(f"trial{frozen.number}", 0)
                    try:
                        lock.acquire()
                    except Timeout:
                        continue  # another process is at it
                    self.study.sampler = self._sampler(frozen.number)  # it may have died before it knew its λ
                    return self._claimed(Trial(self.study, frozen._trial_id), lock)
            if not any(trial.state == TrialState.WAITING for trial in trials):
                if len(trials) >= self.settings.trials:
                    return None
                if len(trials) < len(self.fixed):
                    self.study.enqueue_trial({self.settings.over: self.fixed[len(trials)]})
            self.study.sampler = self._sampler(len(self.study.get_trials(deepcopy=False)))
            trial = self.study.ask()
            lock = self.lock(f"trial{trial.number}")
            lock.acquire()
            return self._claimed(trial, lock)

    def _claimed(self, trial: Trial, lock: FileLock) -> Claim:
        value = trial.params.get(self.settings.over)
        if value is None:
            value = trial.suggest_float(self.settings.over, self.low, self.high, log=True)
        return Claim(trial, rounded(value), lock)

    def _sampler(self, number: int) -> TPESampler:
        """A sampler of the trial's own: one for all would after a kill begin its random numbers from the start."""
        digest = sha256(f"{self.seed} {number}".encode()).digest()
        return TPESampler(n_startup_trials=2, seed=int.from_bytes(digest[:4], "big"))

    def _queue_failed(self) -> None:
        """Put failed trials of earlier calls in the queue again."""
        for trial in self.trials():
            if trial.state == TrialState.FAIL:
                self.study.enqueue_trial(trial.params, user_attrs={AGAIN: trial.number})

    def ended(self, claim: Claim, value: float | None, said: dict[str, Any], failed: bool = False) -> None:
        """Write down what came of a trial: `value`, or without one that it was stopped, or has failed."""
        for name, what in said.items():
            claim.trial.set_user_attr(name, what)
        state = TrialState.FAIL if failed else TrialState.PRUNED if value is None else TrialState.COMPLETE
        self.study.tell(claim.trial, value, state)
        claim.lock.release()

    @property
    def complete(self) -> bool:
        """Whether every trial has ended."""
        trials = self.trials()
        return len(trials) >= self.settings.trials and all(trial.state in ENDED for trial in trials)
