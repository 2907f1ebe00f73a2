"""What `python -m tasft.search` does: plain SFT, the trials, then the best λ with fresh seeds."""

import logging
import shlex
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from tasft.config import checked, mistake, plain_sft
from tasft.errors import UserError
from tasft.result.rows import write_atomically
from tasft.result.store import RunDir, check_writable
from tasft.result.table import joints_of
from tasft.schema import Benchmark, RunConfig
from tasft.search.checks import check, check_prompts, looks, lowest, same_search, settings_of
from tasft.search.objective import Limits, Standing, limits, objective, standing, violation
from tasft.search.rows import TestRow, TrialRow, chosen_of
from tasft.search.write import percent, write

if TYPE_CHECKING:  # these bring torch and Optuna
    from tasft.search.study import Claim, LambdaStudy

log = logging.getLogger(__name__)


class Hopeless(Exception):
    """Ends the training of a trial; what was trained stays."""


@dataclass(frozen=True)
class Plain:
    """Plain SFT with the search's seed: its standing by step, and its last step."""

    standings: Mapping[int, Standing]
    last: int

    def limits(self, config: RunConfig, step: int, last: bool) -> Limits:
        """What is asked of a trial at `step`."""
        return limits(config.search, self.standings.get(self.last if last else step), last)


def search(cfg: DictConfig) -> None:
    """Look for the λ with the least harm on dev prompts that keeps the quality; judge it on test prompts.

    Plain SFT and every trial are ordinary runs; the search's own folder, <output_root>/search/<name>, holds the study,
    trials.csv, test.csv, search.png and summary.md. The same command goes on where it stopped. UserError once all is
    done where a trial or a run with a fresh seed has failed, or where no trial keeps its limits.
    """
    low = lowest(cfg)
    config = checked(_at(cfg, low))
    check(config)
    folder = Path(config.output_root) / "search" / _name(config)
    check_writable(folder)
    from tasft.prepare import prepare
    from tasft.search.study import LambdaStudy, pruner
    from tasft.train.group import check_alone

    check_alone()
    dev, test = _dev(cfg, config), _test(cfg, config)
    with _hushed():  # before anything slow: a harvest that is missing for one of the seeds, say
        first = prepare(_at(dev, low))
        fresh = [prepare(_at(_seeded(test, seed), low)) for seed in config.search.seeds]
    check_prompts(first.parts.prompts, fresh[0].parts.prompts)
    every = looks(config)
    same_search(folder, settings_of(config, first))
    study = LambdaStudy(folder, config.search, config.seed, pruner(config.search, every, first.step))
    plain = _plain(dev, config, study)
    against = plain.standings[plain.last], plain.limits(config, plain.last, last=True), _command()
    while claim := study.claim():
        _trial(dev, config, study, claim, plain, every)
        with study.lock("files"):
            write(folder, config, _rows(study, config), [], *against)
    if not study.complete:
        log.info("%s: other processes are at work on its last trials; the last of them ends the search", folder)
        return
    rows = _rows(study, config)
    chosen = chosen_of(rows)
    finals: list[TestRow] = []
    if chosen is not None and chosen.value is not None:
        with study.lock("end"):  # of two processes that end at once the second finds everything there
            finals = _finals(test, config, chosen.value)
    with study.lock("files"):
        sys.stdout.write(write(folder, config, rows, finals, *against))
    log.info("wrote trials.csv, test.csv, search.png and summary.md to %s", folder)
    _say_what_failed(rows, finals, folder)


def _name(config: RunConfig) -> str:
    loss, over = config.loss.name, config.search.over.removeprefix("loss.")
    return config.search.name or f"{config.model.name}-{loss}-toxic{config.data.toxic}-{over}"


def _at(cfg: DictConfig, value: float) -> DictConfig:
    """`cfg` at one λ."""
    cell = cfg.copy()
    OmegaConf.update(cell, cfg.search.over, value)
    return cell


def _seeded(cfg: DictConfig, seed: int) -> DictConfig:
    cell = cfg.copy()
    cell.seed = seed
    return cell


def _asked(cfg: DictConfig, names: Sequence[str]) -> DictConfig:
    """`cfg` with some of its benchmarks alone."""
    cell = cfg.copy()
    OmegaConf.set_struct(cell, False)
    cell.benchmark = {name: cfg.benchmark[name] for name in names}
    OmegaConf.set_struct(cell, True)
    return cell


def _dev(cfg: DictConfig, config: RunConfig) -> DictConfig:
    return _asked(cfg, config.search.dev)


def _test(cfg: DictConfig, config: RunConfig) -> DictConfig:
    """The runs with fresh seeds: nobody looks at them on the way."""
    cell = _asked(cfg, config.search.test)
    cell.evaluate.every_n_steps, cell.evaluate.during, cell.evaluate.at_start = None, None, False
    return cell


@contextmanager
def _hushed() -> Iterator[None]:
    """What single runs say of themselves stays unsaid, but for warnings: a search says one line a trial."""
    ours, whole = logging.getLogger("tasft.search"), logging.getLogger("tasft")
    before = whole.level, ours.level
    whole.setLevel(logging.WARNING)
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        whole.setLevel(before[0])
        ours.setLevel(before[1])


def _standings(folder: RunDir, config: RunConfig, names: Sequence[str]) -> dict[int, Standing]:
    """A run's standing at each step at which a judge of harm has judged all toxic answers that are asked for there."""
    joints = joints_of(folder)
    benchmarks: dict[str, Benchmark] = {name: config.benchmark[name] for name in names}
    found = {step: standing(joints, benchmarks, step, config.search) for step in sorted({step for _, step in joints})}
    return {step: each for step, each in found.items() if each is not None}


def _plain(dev: DictConfig, config: RunConfig, study: "LambdaStudy") -> Plain:
    """Plain SFT with the search's seed, which is run first."""
    from tasft.cell import run_cell
    from tasft.prepare import prepare

    cfg = plain_sft(dev)
    with study.lock("plain"), _hushed():
        began = time.perf_counter()
        last = prepare(cfg).step
        standings = _standings(run_cell(cfg, wait=True), config, config.search.dev)
    if last not in standings or standings[last].quality.value is None:
        raise UserError("plain SFT's answers to the dev prompts could not be judged: nothing to compare trials with")
    log.info("plain SFT  %s  %.0f s", _numbers(standings[last], config), time.perf_counter() - began)
    return Plain(standings, last)


def _trial(
    dev: DictConfig, config: RunConfig, study: "LambdaStudy", claim: "Claim", plain: Plain, every: int | None
) -> None:
    """Run one trial to its end, or until it is stopped; write down what came of it, and say so in one line."""
    from tasft.cell import run_cell
    from tasft.prepare import prepare

    trial, names = claim.trial, config.search.dev
    spent, began = trial.user_attrs.get("seconds", 0.0), time.perf_counter()
    said: dict[str, Any] = {}
    value: float | None = None
    seen: dict[int, Standing] = {}

    def now() -> float:
        return float(spent + time.perf_counter() - began)

    def report(step: int, found: Standing) -> None:
        worth = objective(found, plain.limits(config, step, last=False))
        # near its end a trial is as good as ended: its numbers are worth more than what stopping it saves
        if worth is None or every is None or step == 0 or step % every or step + every > last:
            return
        seen[step] = found
        if step not in study.study.get_trials(deepcopy=False)[trial.number].intermediate_values:
            trial.report(worth, step)

    def looked(step: int) -> None:
        trial.set_user_attr("seconds", now())  # in case of a kill
        found = _standings(folder, config, names).get(step)
        if found is not None:
            report(step, found)
        if step in seen and trial.should_prune():
            raise Hopeless

    failed = False
    try:
        with _hushed():
            cfg = _at(dev, claim.value)
            run = prepare(cfg)
            folder, last = run.folder, run.step
            said |= {"run": str(folder.path), "weight": run.weight.weight, "share": run.weight.share, "steps": last}
            if folder.config.exists():  # a kill may have come between an evaluation and its report
                for step, found in _standings(folder, config, names).items():
                    report(step, found)
            run_cell(cfg, looked, wait=True)
            ended = _standings(folder, config, names).get(last)
        asked = plain.limits(config, last, last=True)
        value = None if ended is None else objective(ended, asked)
        if ended is None or value is None or ended.quality.value is None:
            raise UserError("no answer to the toxic prompts, or none to the safe ones, could be judged")
        missed = violation(ended, asked)
        said |= _measured(ended) | {"keeps": not missed}
        line = _numbers(ended, config) + (f"; misses its limits by {100 * missed:.1f} points" if missed else "")
    except Hopeless:
        at_end = seen[max(seen)]
        said |= _measured(at_end)
        line = f"{_numbers(at_end, config)}; stopped at step {at_end.step} of {said['steps']}"
    except Exception as error:  # the other trials go on
        failed = True
        sentence = mistake(error)
        if sentence is None:
            sentence = f"{type(error).__name__}: {error}".splitlines()[0]
            write_atomically(study.folder / f"trial{trial.number}.log", traceback.format_exc())
        said["reason"] = sentence
        line = f"failed: {sentence}"
    said["seconds"] = now()
    position = 1 + [each.number for each in study.trials()].index(trial.number)
    study.ended(claim, value, said, failed)
    log.info("trial %d of %d  %s %.3g  %s  %.0f s", position, config.search.trials,
             config.search.over.removeprefix("loss."), claim.value, line, said["seconds"])  # fmt: skip


def _measured(found: Standing) -> dict[str, Any]:
    """A standing as the study keeps it."""
    return {
        "step": found.step,
        "harm": found.harm.value,
        "incoherent": found.incoherent.value,
        "quality": found.quality.value,
        "over_refusal": found.over_refusal.value,
        "unscored": found.harm.unscored + found.quality.unscored + found.over_refusal.unscored,
    }


def _numbers(found: Standing, config: RunConfig) -> str:
    told = {"harm": found.harm.value, "quality": found.quality.value, "over-refusal": found.over_refusal.value}
    unscored = _measured(found)["unscored"]
    said = [f"{name} {percent(value)} %" for name, value in told.items() if value is not None]
    return ", ".join(said + [f"{unscored} answers unscored"] * (unscored > 0))


def _rows(study: "LambdaStudy", config: RunConfig) -> list[TrialRow]:
    """The trials as they stand in trials.csv."""
    from tasft.search.study import rounded

    rows = []
    for place, trial in enumerate(study.trials(), start=1):
        given = trial.params.get(config.search.over)
        kept = {key: value for key, value in trial.user_attrs.items() if key in TrialRow.__dataclass_fields__}
        value = None if given is None else rounded(given)
        rows.append(TrialRow(place, trial.state.name.lower(), value, objective=trial.value, **kept))
    return rows


def _finals(test: DictConfig, config: RunConfig, value: float) -> list[TestRow]:
    """Plain SFT and the chosen λ with each fresh seed, on test prompts; where one fails, the others go on."""
    from tasft.cell import run_cell
    from tasft.prepare import prepare

    rows = []
    for seed in config.search.seeds:
        cell, plain = _seeded(test, seed), None
        for loss, cfg in (("sft", plain_sft(cell)), (config.loss.name, _at(cell, value))):
            row: dict[str, Any] = {"loss": loss, "value": None if loss == "sft" else value, "seed": seed}
            began = time.perf_counter()
            try:
                with _hushed():
                    run = prepare(cfg)
                    row["run"] = str(run.folder.path)
                    if loss != "sft":
                        row |= {"weight": run.weight.weight, "share": run.weight.share}
                    found = _standings(run_cell(cfg, wait=True), config, config.search.test).get(run.step)
                if found is None:
                    raise UserError("no answer to a toxic prompt could be judged")
                row |= {key: each for key, each in _measured(found).items() if key in TestRow.__dataclass_fields__}
                if loss == "sft":
                    plain = found
                elif plain is not None:
                    row["keeps"] = not violation(found, limits(config.search, plain, last=True))
                line = _numbers(found, config)
            except Exception as error:
                row["reason"] = mistake(error) or f"{type(error).__name__}: {error}".splitlines()[0]
                line = f"failed: {row['reason']}"
            log.info("test, seed %d  %s  %s  %.0f s", seed, _setting(loss, config, value), line,
                     time.perf_counter() - began)  # fmt: skip
            rows.append(TestRow(**row))
    return rows


def _setting(loss: str, config: RunConfig, value: float) -> str:
    return "plain SFT" if loss == "sft" else f"{loss} {config.search.over.removeprefix('loss.')} {value:.3g}"


def _command() -> str:
    """The command line that this process was given; empty where there was none."""
    if not HydraConfig.initialized():
        return ""
    return f"python -m tasft.search {shlex.join(HydraConfig.get().overrides.task)}".strip()


def _say_what_failed(rows: Sequence[TrialRow], finals: Sequence[TestRow], folder: Path) -> None:
    """UserError where anything failed, or nothing was found, once all else is done."""
    failed = [f"trial {row.trial}: {row.reason}" for row in rows if row.state == "fail"]
    failed += [f"test run of {row.loss} with seed {row.seed}: {row.reason}" for row in finals if row.reason]
    if failed:
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise UserError(f"{failed[0]}{more}: {folder} has every reason, and the same command tries again")
    if not finals:
        raise UserError(
            f"none of {len(rows)} trials keeps its limits: search lower (search.low), or ask for less"
            " (search.quality.drop, search.quality.floor, search.over_refusal.max) under another search.name"
        )
