"""A prepared run to its files: fine-tune, answer, judge, whatever of it is not there yet."""

import gc
import json
import logging
import os
import platform
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from peft import PeftModel

from tasft import parts
from tasft.benchmark.prompts import BenchmarkPrompt
from tasft.config import in_grid, judges_of
from tasft.data.example import Rejected
from tasft.errors import UserError
from tasft.evaluate.generating import Answer, generate
from tasft.evaluate.judging import Asked, heed, judge_all, judge_into, relabels, say_what_failed
from tasft.evaluate.served import served
from tasft.evaluate.tasks import run_tasks, write_results
from tasft.launch import GRACE, Signalled, launch
from tasft.loss.adaptive import Adaptive, Goal, reference_curve
from tasft.model.lora import with_lora
from tasft.model.readme import adapter_readme
from tasft.prepare import Run, quiet
from tasft.remote import check_key
from tasft.result.batches import Batches
from tasft.result.cost import EVERY
from tasft.result.lock import only_one
from tasft.result.rows import ResponseRow, write_atomically
from tasft.result.store import RunDir, read_config
from tasft.source import cache_folder
from tasft.track import Tracker, lacking, tracking
from tasft.train.fit import Files, Watch, fit, last_checkpoint, saved_step
from tasft.train.group import Group, Stopped, check_alone, cores, joined, to_start, world_size
from tasft.train.head import check_head, split, token_embedding
from tasft.train.module import Cutting, FineTuning
from tasft.train.reference import precomputed
from tasft.train.schedule import Schedule
from tasft.train.shard import is_sharded, memory_freed, shard, whole

log = logging.getLogger(__name__)

# keys that may differ between two calls of one run: where and how fast it runs, what is asked of its answers, and where
# its rows lie, which count by their content
FREE = """
    trainer logger benchmark judge tasks harvest contrastive inspect saft auto resume prefill attack ask agreement
    model.adapter output_root experiment optimizer.name data.name data.safe data.toxic data.toxic_source
    data.pretraining data.toxic_prompts data.safe_answers data.safe_answers_source data.contrastive data.harmful
    data.contrastive_source data.harmful_source data.contamination data.counts data.filter model.name model.path
    model.epochs model.attention model.tuned_weight model.tuned_share loss.precompute_reference loss.weight loss.share
    loss.factor loss.embedding loss.toxic_eos evaluate.batch_size evaluate.every_n_steps evaluate.during
    evaluate.at_start evaluate.server search
""".split()
# `make bench` has the speed of others; on a GPU a 7B model without activation checkpointing takes about 7 MB a token
MICRO_BATCH_TOKENS = {"cpu": 1024, "cuda": 4096}


def execute(
    run: Run, plain: RunDir | None = None, wait: bool = False, looked: Callable[[int], None] | None = None
) -> RunDir:
    """Fine-tune, answer and judge whatever of it is not there yet; the run's folder.

    `plain` is plain SFT on the same rows, whose safe loss loss.weight=auto keeps near. wait: for another process that
    is at work on this very run, instead of a UserError. `looked(step)` is called after each evaluation during the
    training; what it raises ends the training, which the next call goes on with from its last checkpoint. Of ranks that
    torchrun or srun has started the first one does it; the others only train.
    """
    check_evaluation(run)
    folder, config, group = run.folder, _yaml(run), joined()
    group.meet(run.device.type)
    if not group.first:
        if group.agree(TRAINS):
            with handing_on():
                _fine_tune(run, plain, group)
        return folder
    with handing_on(), _letting_go(group) as begin, only_one(folder.path, wait), ExitStack() as stack:
        aside = folder.path.with_name(f".{folder.path.name}.replaced")
        if not run.config.resume and folder.path.exists():
            _put_aside(folder.path, aside)
        folder.check(config, FREE)
        _heed_judges(run)
        trained = folder.adapter.exists()
        tracker = stack.enter_context(_tracking(run))
        if trained:
            _say_what_is_past(run, run.step)
        todo = _unanswered(run)
        if folder.finished and not todo and not _unjudged(run) and _tasks_done(run):
            kept = read_config(folder.config).get("judge", {})
            if any(node != kept.get(name) for name, node in run.config.judge.items()):
                folder.create(config, _environment(run), FREE)  # a judge's notes: what its labels stand for
            failed = _judge_rest(run)
            tracker.finish()
            log.info("already finished: %s", folder.path)
            say_what_failed(failed)
            return folder
        model = None
        if not trained:
            begin()
            model = _train(run, plain, tracker, looked)
            todo = _unanswered(run)
        elif (todo and run.config.evaluate.server.base_url is None) or not _tasks_done(run):
            model = load_tuned(run)
        folder.create(config, _environment(run), FREE)
        for name, step in todo:
            with run.meter.at("answering"):
                _answer(run, model, name, step)
        if not _tasks_done(run):
            for file in folder.tasks.glob(f"*@{run.step}.json"):
                file.unlink()  # of other settings
            with run.meter.at("answering"):
                write_results(folder.tasks, run.step, run_tasks(model, run.base.tokenizer, run.config.tasks))
            write_atomically(_tasks_file(run), json.dumps(_deciding_tasks(run), indent=2) + "\n")
        del model  # for judges that need its memory
        gc.collect()
        memory_freed()
        failed = _judge_rest(run)
        folder.finish()
        shutil.rmtree(aside, ignore_errors=True)
        tracker.finish()
        log.info("finished: %s", folder.path)
        say_what_failed(failed)
        return folder


def nothing_left(run: Run) -> bool:
    """Whether `execute` would find all that the run is asked for: trained, answered, and judged with today's settings.

    UserError where it would refuse. Answers that a server had a bad day with are left to be judged.
    """
    check_evaluation(run)
    if not run.folder.finished:
        return False
    config = _yaml(run)
    if run.folder.config.read_text(encoding="utf-8") != config:  # mostly it is the same, and reading yaml is slow
        run.folder.check(config, FREE)
        kept = read_config(run.folder.config).get("judge", {})
        if any(node != kept.get(name) for name, node in run.config.judge.items()) or _relabels(run, kept):
            return False
    if _unanswered(run) or not _tasks_done(run) or lacking(run.config, run.folder):
        return False
    asks_a_server = [name for name, node in run.config.judge.items() if "base_url" in node]
    return not any(
        not run.folder.has_scores(*each)
        or (each[2] in asks_a_server and any(score.may_come for score in run.folder.read_scores(*each)))
        for each in _to_judge(run)
    )


def load_tuned(run: Run) -> PeftModel:
    """The base model with the adapter that the run has trained, ready to answer."""
    model = run.base.load(run.device)
    return PeftModel.from_pretrained(model, str(run.folder.adapter)).to(run.device).eval()


def answer(
    run: Run,
    model: Any,
    prompts: Sequence[BenchmarkPrompt],
    title: str,
    prefix: Sequence[str | Sequence[int]] | None = None,
    kept: Batches[Answer] | None = None,
) -> list[ResponseRow]:
    """The model's answers to `prompts`, in their order; `prefix` and `kept` as in `generate`."""
    settings = run.config.evaluate
    answers = generate(
        model, run.base.tokenizer, [prompt.text for prompt in prompts], run.format, settings.max_new_tokens,
        settings.batch_size, f"answering {title}", {"num_beams": settings.num_beams}, prefix, kept,
    )  # fmt: skip
    return _rows(prompts, answers)


def answer_after(
    run: Run,
    step: int,
    model: Any,
    prompts: Sequence[BenchmarkPrompt],
    title: str,
    unfinished: Path,
    prefix: Sequence[str | Sequence[int]] | None = None,
) -> list[ResponseRow]:
    """The answers to `prompts` after `step` (0: the base model's), by evaluate.server or, where there is none, `model`.

    unfinished: the file of batches that are finished, which are not made again after a kill. prefix: as in `generate`.
    """
    settings, folder = run.config.evaluate, run.folder
    if settings.server.base_url is not None:
        answers = served(
            settings.server, str(run.config.model.path), None if step == 0 else folder.adapter, run.base.tokenizer,
            [prompt.text for prompt in prompts], run.format, settings.max_new_tokens, f"answering {title}", prefix,
        )  # fmt: skip
        return _rows(prompts, answers)
    kept = Batches(unfinished, Answer, deciding_answers(run, step))
    with model.disable_adapter() if step == 0 else nullcontext():
        return answer(run, model, prompts, title, prefix=prefix, kept=kept)


def _rows(prompts: Sequence[BenchmarkPrompt], answers: Sequence[Answer]) -> list[ResponseRow]:
    return [
        ResponseRow(prompt.id, prompt.text, answer.text, answer.truncated, prompt.reference, prompt.category)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def answers_are_of(folder: RunDir, benchmark: str, step: int, prompts: Sequence[BenchmarkPrompt]) -> bool:
    """Whether the answers in the folder are there, and are to these very prompts."""
    if not folder.has_responses(benchmark, step):
        return False
    return [row.prompt_id for row in folder.read_responses(benchmark, step)] == [prompt.id for prompt in prompts]


def _answered(run: Run, name: str, step: int) -> bool:
    return answers_are_of(run.folder, name, step, run.parts.prompts[name])


def _unanswered(run: Run) -> list[tuple[str, int]]:
    """(benchmark, step) of the answers that are asked for before and after the training, and are not there."""
    start = [(name, 0) for name in _during(run)] if run.config.evaluate.at_start else []
    wanted = start + [(name, run.step) for name in run.config.benchmark]
    return [each for each in wanted if not _answered(run, *each)]


def _during(run: Run) -> list[str]:
    """The benchmarks that are asked at other steps than the last one, too."""
    chosen = run.config.evaluate.during
    return [name for name in run.config.benchmark if chosen is None or name in chosen]


def _answer(run: Run, model: Any, name: str, step: int) -> None:
    """Answer the prompts of a benchmark; after a kill only in the batches that were not finished. Step 0: the base."""
    folder = run.folder
    folder.drop_scores(name, step)  # they are of other answers
    title = name if step == run.step else f"{name} after step {step}"
    rows = answer_after(run, step, model, run.parts.prompts[name], title, folder.unfinished(name, step))
    folder.write_responses(name, step, rows, deciding_answers(run, step))
    run.meter.enter()


def deciding_answers(run: Run, step: int) -> dict[str, Any]:
    """What decides the answers after `step`, besides the prompts: what stands beside them."""
    config, settings = run.config, run.config.evaluate
    decided = {
        "base": run.base.identity,
        "adapter": f"after step {step}" if step else None,
        "template": run.format.prompt("{prompt}"),
        "max_new_tokens": settings.max_new_tokens,
        "num_beams": settings.num_beams,
        "sampling": False,
        "versions": {name: version(name) for name in ("tasft", "torch", "transformers", "peft")},
    }
    if settings.server.base_url is not None:
        server = settings.server
        return decided | {"server": {"base_url": server.base_url, "model": server.model if step else server.base_model}}
    return decided | {
        "batch_size": settings.batch_size,
        "dtype": config.model.dtype,
        "attention": config.model.attention,
        "device": run.device.type,
    }


def _look(run: Run, model: Any, tracker: Tracker, step: int) -> None:
    """What is done during the training: the live model answers, and judges that need little say what it is worth.

    The others, with weights of their own or on a server, judge all answers after the training. Leaves the model and
    all random state as they were.
    """
    with torch.random.fork_rng(devices=[run.device] if run.device.type == "cuda" else []):
        for name in _during(run):
            if not _answered(run, name, step):
                with run.meter.at("answering"):
                    _answer(run, model, name, step)
            for judged_by in judges_of(run.config, name):
                if _quick(run, judged_by):
                    with run.meter.at("judging"):
                        judge_into(run.parts.judges[judged_by], _asked(run, name, step, judged_by), run.meter.enter)
        tracker.evaluated()


def _quick(run: Run, judged_by: str) -> bool:
    """Whether a judge needs no weights of its own and no server, and so judges during the training, too."""
    return not {"path", "base_url"} & run.config.judge[judged_by].keys()


def _say_what_is_past(run: Run, reached: int) -> None:
    """That a training which is at step `reached` cannot be asked any more what it would have said before."""
    every = run.config.evaluate.every_n_steps
    if every is None:
        return
    steps = range(every, reached, every)
    past = [str(step) for step in steps if not all(_answered(run, name, step) for name in _during(run))]
    if past:
        log.warning(
            "evaluate.every_n_steps=%d, but the training is past step %s, and nothing has been asked there:"
            " resume=false trains again", every, ", ".join(past[:5]) + ", ..." * (len(past) > 5),
        )  # fmt: skip


def check_evaluation(run: Run) -> None:
    """UserError for what the config's `evaluate` cannot mean."""
    config, settings, server = run.config, run.config.evaluate, run.config.evaluate.server
    unknown = [name for name in settings.during or [] if name not in config.benchmark]
    if unknown:
        raise UserError(
            f"evaluate.during names {unknown[0]}, which is not among benchmark=[{','.join(config.benchmark)}]: add it"
        )
    if settings.during is not None and settings.every_n_steps is None and not settings.at_start:
        raise UserError("evaluate.during says to whom, but not when: give evaluate.every_n_steps=K or at_start=true")
    if server.base_url is None:
        return
    check_key(server.key, "evaluate.server.")  # before a config with it is written
    if settings.every_n_steps is not None or settings.num_beams > 1:
        what = "every_n_steps" if settings.every_n_steps is not None else "num_beams"
        raise UserError(f"evaluate.server and evaluate.{what} do not go together: the server has a finished adapter"
                        " and decodes greedily; drop one")  # fmt: skip
    if not run.folder.adapter.exists() or not config.resume:
        raise UserError(
            f"evaluate.server answers with the adapter of a finished training, and {run.folder.adapter} is not there:"
            " give the same command without evaluate.server and with benchmark=[] first, and the adapter to the server"
        )


def _heed_judges(run: Run) -> None:
    """Bring the scores that are there in line with the judges' settings by now: a model, a threshold.

    Scores of all benchmarks, as config.yaml is to hold the new settings: at once where labels are new, as they are
    theirs whatever comes next. Also of judges that cannot be had today, whose labels another threshold changes all the
    same.
    """
    folder, now = run.folder, {name: each.node for name, each in run.parts.missed.items()} | run.config.judge
    kept = read_config(folder.config).get("judge", {}) if folder.config.exists() else {}
    for name in sorted(heed(folder, kept, now, run.config.judge)):
        folder.add_judge(name, now[name])


def _relabels(run: Run, kept: Mapping[str, Any]) -> bool:
    """Whether a judge that cannot be had today, but has judged before, is given other settings."""
    scored = {judge for *_, judge in run.folder.scores_present()}
    nodes = {name: each.node for name, each in run.parts.missed.items() if name in kept and name in scored}
    return any(relabels(kept[name], node) for name, node in nodes.items())


def _to_judge(run: Run) -> list[tuple[str, int, str]]:
    """(benchmark, step, judge) that make sense together, for all answers that are there."""
    present = run.folder.responses_present()
    return [
        (name, step, judged_by)
        for name in run.config.benchmark
        for step in sorted(step for answered, step in present if answered == name)
        for judged_by in judges_of(run.config, name)
    ]


def _unjudged(run: Run) -> list[tuple[str, int, str]]:
    """(benchmark, step, judge) without scores."""
    return [each for each in _to_judge(run) if not run.folder.has_scores(*each)]


def _tasks_file(run: Run) -> Path:
    """What decided the results of lm-eval's tasks, written after them."""
    return run.folder.tasks / f"asked-{run.step}.json"


def _deciding_tasks(run: Run) -> dict[str, Any]:
    return {key: value for key, value in asdict(run.config.tasks).items() if key != "batch_size"}


def _tasks_done(run: Run) -> bool:
    """Whether lm-eval's tasks have been run, as they are asked for now; true where there are none."""
    file = _tasks_file(run)
    if not run.config.tasks.names:
        return True
    with suppress(OSError, ValueError):
        return bool(json.loads(file.read_text()) == _deciding_tasks(run))
    return False


def _judge_rest(run: Run) -> dict[str, str]:
    """Have every answer judged that has no score yet, also those that a judge has left unscored before.

    Judges that cannot go on, and why: the others do.
    """
    with run.meter.at("judging"):
        return judge_all(run.parts.judges, [_asked(run, *each) for each in _to_judge(run)], run.meter.enter)


def _asked(run: Run, name: str, step: int, judged_by: str) -> Asked:
    """The answers to a benchmark after `step`, for one judge."""
    folder = run.folder
    answers = partial(folder.read_responses, name, step)
    return Asked(judged_by, answers, folder.scores(name, step, judged_by), f"answers to {name}")


def _train(run: Run, plain: RunDir | None, tracker: Tracker, looked: Callable[[int], None] | None) -> PeftModel:
    """Fine-tune to the end, from the last checkpoint where there is one, and write the adapter; the model.

    In as many processes as the trainer asks for.
    """
    folder, world = run.folder, to_start(run.config.trainer)
    run.base.make(run.device)  # one from scratch is trained here, once, where it can be seen; it is no cost of this run
    if world == 1:
        with run.meter.at("training"):
            model = _fine_tune(run, plain, joined(), tracker, looked)
        # the other ranks have left with their share of a model that was dealt out
        return load_tuned(run) if is_sharded(model) else model.to(run.device).eval()
    memory_freed()
    threads = None if run.config.trainer.threads or run.device.type != "cpu" else max(cores() // world, 1)
    # judges may hold what cannot be sent, and are built anew
    task = partial(work, replace(run, parts=replace(run.parts, judges={}, missed={})), plain)
    try:
        launch(task, run.device.type, world, folder.path / "ranks", threads, looked, aloud=not in_grid())
    except Signalled as signalled:
        checkpoint = last_checkpoint(folder.checkpoints)
        raise Stopped(signalled.signum, saved_step(checkpoint) if checkpoint else 0) from None
    return load_tuned(run)


def work(run: Run, plain: RunDir | None, group: Group, looked: Callable[[int], None]) -> None:
    """The training as one of the processes that `_train` has started."""
    quiet()
    if run.config.trainer.threads is not None:
        torch.set_num_threads(run.config.trainer.threads)
    if not group.first:
        _fine_tune(run, plain, group)
        return
    asked = {name for each in _during(run) for name in judges_of(run.config, each) if _quick(run, name)}
    run = replace(run, parts=replace(run.parts, judges={name: parts.judge(run.config, name) for name in asked}))
    with _tracking(run) as tracker, run.meter.at("training"):
        _fine_tune(run, plain, group, tracker, looked)


def _fine_tune(
    run: Run,
    plain: RunDir | None,
    group: Group,
    tracker: Tracker | None = None,
    looked: Callable[[int], None] | None = None,
) -> PeftModel:
    """The same as one rank of `group`, of which the first alone writes, evaluates, and has a `tracker`."""
    config, folder = run.config, run.folder
    model = with_lora(run.base.load(run.device), config.model.lora, config.seed)
    if config.trainer.strategy == "fsdp" and group.world > 1:
        shard(model, run.device.type, group.world)  # layer by layer: no GPU has to hold all of it
    model = model.to(run.device)
    split_model = split(model)
    check_head(model, split_model, config.trainer.packing)
    checkpoint = None
    if group.first:
        folder.create(_yaml(run), _environment(run), FREE)
        _write_rejected(folder.rejected, [each for part in run.mixture.values() for each in part.rejected])
        checkpoint = last_checkpoint(folder.checkpoints)
        reached = saved_step(checkpoint) if checkpoint else 0
        _say_what_is_past(run, reached)
        folder.truncate_metrics(reached)
    checkpoint = group.agree(checkpoint)
    pad = run.base.tokenizer.pad_token_id
    module = FineTuning(
        model,
        split_model,
        token_embedding(model, config.loss.embedding) if run.parts.objective.toxic is not None else None,
        run.parts.objective,
        Cutting(
            config.trainer.max_tokens or MICRO_BATCH_TOKENS[run.device.type],
            config.trainer.packing,
            pad if pad is not None else run.base.tokenizer.eos_token_id,
        ),
        run.parts.make_optimizer,
        Schedule(config.optimizer.schedule, config.optimizer.warmup_steps, run.step),  # type: ignore[arg-type]
        config.optimizer.clip,
        config.seed,
        _adaptive(run, plain),
    )
    if config.loss.precompute_reference:
        rows = [tokens for part in run.mixture.values() for tokens in part.tokens]
        with whole(model):
            run.batches.references = precomputed(
                model, split_model, rows, module.cutting.max_tokens, config.trainer.packing, module.cutting.pad_id,
                cache_folder() / "reference", [run.base.identity, config.model.dtype],
            )  # fmt: skip
            group.agree(None)  # until all have them nobody lets go of the whole model

    def append_speed(row: dict[str, Any]) -> None:
        folder.append_speed(row)
        run.meter.enter(EVERY)

    files = Files(folder.checkpoints, folder.append_metrics, append_speed)
    accelerator = "gpu" if run.device.type == "cuda" else "cpu"

    def look(step: int) -> None:
        assert tracker is not None, "not the first rank"
        _look(run, model, tracker, step)
        if looked is not None:
            looked(step)

    if config.evaluate.at_start:
        with whole(model):
            group.first_does(partial(look, 0))
    if tracker is not None:
        tracker.evaluated()  # opened before the training's clock runs
    watch = Watch(look, config.evaluate.every_n_steps) if config.evaluate.every_n_steps is not None else None
    fit(
        module, run.batches, files, accelerator, config.trainer.log_every, config.trainer.checkpoint_every,
        tracker, checkpoint, watch, group,
    )  # fmt: skip
    if group.first:
        draft = folder.path / ".adapter"
        shutil.rmtree(draft, ignore_errors=True)
        _save_adapter(run, model, draft)
        draft.rename(folder.adapter)
        run.meter.enter()
    group.agree(None)  # no rank leaves before it is written
    return model


@contextmanager
def handing_on() -> Iterator[None]:
    """After a training that a signal has stopped, the signal does what it would have done without us.

    submitit's handler asks for the job to be queued again; without one the process ends by it.
    """
    try:
        yield
    except Stopped as stop:
        if joined().first:
            log.warning("%s", stop)
        before = signal.getsignal(stop.signum)
        if callable(before):
            before(stop.signum, None)
            if not joined().first:
                time.sleep(GRACE)  # it is for the first rank to act, which an end of this one might cut short
        signal.signal(stop.signum, signal.SIG_DFL)
        os.kill(os.getpid(), stop.signum)


TRAINS = True


@contextmanager
def _letting_go(group: Group) -> Iterator[Callable[[], None]]:
    """Gives what has the other ranks of `group` train; where it is not called within, they are let go at the end."""
    told: list[bool] = []

    def begin() -> None:
        told.append(group.agree(TRAINS))

    try:
        yield begin
    finally:
        if not told:
            group.agree(not TRAINS)


def _save_adapter(run: Run, model: PeftModel, folder: Path) -> None:
    """Write the adapter in PEFT's format, with a README that says on which model it belongs."""
    model.save_pretrained(str(folder))
    revision, path = model.peft_config["default"].revision, run.folder.path
    title = f"{run.config.model.name}, {path.parent.parent.name} {path.parent.name}, seed {run.config.seed}"
    text = adapter_readme(title, run.base.place, revision, run.base.adapters, run.format.prompt("{prompt}"))
    write_atomically(folder / "README.md", text)


def _tracking(run: Run) -> AbstractContextManager[Tracker]:
    """What mirrors the run's files to a logger."""
    stage = "evaluate" if run.folder.adapter.exists() else "train"
    return tracking(run.config, run.folder, stage, parts.logger(run.config, run.folder.path))


def _adaptive(run: Run, plain: RunDir | None) -> Adaptive | None:
    """What sets λ step by step under loss.weight=auto."""
    config, auto = run.config, run.config.auto
    if config.loss.weight != "auto":
        return None
    goal = Goal(auto.target, auto.tolerance, auto.gain, auto.integral, auto.smoothing, auto.range)
    curve = None if plain is None or auto.tolerance is None else reference_curve(plain.read_metrics())
    answers = len(run.mixture["toxic"].tokens) * config.epochs
    return Adaptive(goal, run.weight.weight, curve, run.step, answers)


@contextmanager
def alone(path: Path, wait: bool = False) -> Iterator[None]:
    """Keeps other processes out of a folder as `only_one` does, for commands that do not share their work with any."""
    check_alone()
    with only_one(path, wait):
        yield


def _put_aside(path: Path, aside: Path) -> None:
    """Move a run out of the way until its successor is finished."""
    if aside.exists():  # still there: what is at `path` is its unfinished successor
        shutil.rmtree(path)
    else:
        path.rename(aside)
    log.info("resume=false: starting %s afresh; what was there waits in %s until that is finished", path, aside)


def _write_rejected(file: Path, rejected: Sequence[Rejected]) -> None:
    file.write_text("".join(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in rejected))


def _yaml(run: Run) -> str:
    """The resolved config, with the share that the weight stands for."""
    described = asdict(run.config)
    described["loss"]["share"] = run.weight.share if run.config.loss.toxic is not None else None
    return OmegaConf.to_yaml(OmegaConf.create(described))


def _environment(run: Run) -> dict[str, Any]:
    """What else the numbers came from."""
    device = run.device
    packages = ("tasft", "torch", "lightning", "transformers", "peft", "hydra-core", "tokenizers")
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "world_size": world_size(run.config.trainer),
        "data": {kind: {"rows": len(part.tokens), "sha256": part.fingerprint} for kind, part in run.mixture.items()},
        "licences": run.licences,
        "weight": asdict(run.weight),
        "base": run.base.identity,  # what the adapter belongs on
        "base_weights": run.base.weights,
    }


def commit() -> str | None:
    """The commit of this checkout, -dirty where files are changed; None where tasft is installed from a wheel."""
    checkout = Path(__file__).parent.parent
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:  # no git
        return None
