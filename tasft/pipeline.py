"""One run from its config to its files: prepare and check everything, fine-tune, generate, judge."""

import json
import logging
import platform
import shutil
import subprocess
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from omegaconf import DictConfig, OmegaConf
from peft import PeftModel

from tasft import parts
from tasft.base import Base, base_of
from tasft.benchmark.prompts import BenchmarkPrompt
from tasft.config import checked, tuned
from tasft.data.example import Example, Rejected, example
from tasft.data.mixture import Chosen, choose, summary
from tasft.data.steps import StepBatches
from tasft.data.tokenize import Encoder, Tokenized
from tasft.errors import UserError
from tasft.evaluate.generating import generate
from tasft.evaluate.judging import judge
from tasft.loss.tuned import ChosenWeight
from tasft.model.lora import with_lora
from tasft.prompt import Format, prompt_format
from tasft.result.rows import ResponseRow
from tasft.result.store import RunDir, check_writable, identity, run_path, toxic_used
from tasft.schema import RunConfig, Source
from tasft.source import fingerprint, read_rows
from tasft.train.fit import Files, fit, last_checkpoint
from tasft.train.head import check_head, split, token_embedding
from tasft.train.module import Cutting, FineTuning
from tasft.train.schedule import Schedule

log = logging.getLogger(__name__)

# keys that may differ between two calls of one run: where and how fast it runs, and what is asked of its answers
FREE = (
    *("trainer", "logger", "benchmark", "judge", "harvest", "output_root", "resume", "experiment"),
    *("data.toxic_prompts", "data.safe.path", "data.toxic_source.path", "model.tuned_weight", "model.tuned_share"),
)

# `make bench` has the speed of others; on a GPU a 7B model without activation checkpointing takes about 7 MB a token
MICRO_BATCH_TOKENS = {"cpu": 1024, "cuda": 4096}


@dataclass(frozen=True)
class Run:
    """A run whose config and files have been checked; nothing slow has happened and nothing has been written."""

    config: RunConfig
    weight: ChosenWeight
    parts: parts.Parts
    base: Base
    format: Format
    safe: Chosen
    toxic: Chosen
    fingerprints: dict[str, str]

    @cached_property
    def folder(self) -> RunDir:
        """Where the run lives: named by what decides its numbers."""
        config = self.config
        path = run_path(
            Path(config.output_root), str(config.model.name), config.loss.name, config.data.toxic,
            config.loss.weight, config.seed, identity(_deciding(config, self.fingerprints)),
        )  # fmt: skip
        return RunDir(path)

    @cached_property
    def batches(self) -> StepBatches:
        """The step batches of the whole training."""
        config = self.config
        rows = self.safe.tokens + self.toxic.tokens
        return StepBatches(rows, config.batch_size, config.epochs, config.seed, self.parts.objective.weights)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        gpu = self.config.trainer.accelerator != "cpu" and torch.cuda.is_available()
        return torch.device("cuda" if gpu else "cpu")


def prepare(cfg: DictConfig) -> Run:
    """Check the config, read and tokenize every row, name the folder. UserError for the first mistake found."""
    _quiet()
    config = checked(cfg)
    weight = tuned(cfg)
    check_writable(Path(config.output_root))
    if config.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError(
            "trainer.accelerator=gpu, but PyTorch finds no GPU: use trainer=cpu, or install a CUDA build of PyTorch"
        )
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    built = parts.build(config)
    used = toxic_used(config.loss.name, config.data.toxic)
    safe_source = parts.with_rows(config.data.safe, "data.safe")
    rows = {"data.safe": read_rows(safe_source, "data.safe")}
    toxic_source = parts.with_rows(_harvested(config), "data.toxic_source") if used else None
    if toxic_source is not None:
        rows["data.toxic_source"] = read_rows(toxic_source, "data.toxic_source")
    log.info(
        "%s on %s: %s safe and %s toxic rows, λ = %g (share %.3g, %s)",
        config.loss.name, config.model.name, f"{config.data.safe.count:,}", used,
        weight.weight, weight.share, weight.why,
    )  # fmt: skip

    def chosen(key: str, source: Source | None, count: int, name: str, encode: Any) -> Chosen:
        if source is None:
            return Chosen([], [])
        return choose(rows[key], source.fields, key == "data.toxic_source", count, config.seed, encode, name)

    count = config.data.safe.count or 0
    # too few rows are noticed here, before a base model is loaded or trained
    chosen("data.safe", safe_source, count, "data.safe.count", _untokenized)
    chosen("data.toxic_source", toxic_source, used, "data.toxic", _untokenized)
    base = base_of(config.model, _pretraining_texts(config, rows))
    format = prompt_format(config.data.format, base.tokenizer, config.data.system)
    encode = Encoder(base.tokenizer, format, config.data.max_length, config.loss.toxic_eos)
    safe = chosen("data.safe", safe_source, count, "data.safe.count", encode)
    toxic = chosen("data.toxic_source", toxic_source, used, "data.toxic", encode)
    fingerprints = {"data.safe": fingerprint(safe_source, "data.safe")}
    if toxic_source is not None:
        fingerprints["data.toxic_source"] = fingerprint(toxic_source, "data.toxic_source")
    run = Run(config, weight, built, base, format, safe, toxic, fingerprints)
    for name, part in {"safe": safe, "toxic": toxic}.items():
        cut = sum(t.truncated for t in part.tokens)
        if cut:
            log.info(
                "%d of %d %s responses are cut at data.max_length=%d",
                cut,
                len(part.tokens),
                name,
                config.data.max_length,
            )
        if part.rejected:
            log.info("passed over %s rows: %s", name, summary(part.rejected))
    return run


def _quiet() -> None:
    """Libraries' remarks on devices, deprecations and loading are no use to who reads a run's log."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="lightning.*|transformers.*|torch.*|peft.*")


def execute(run: Run) -> RunDir:
    """Fine-tune, answer and judge whatever of it is not there yet; the run's folder."""
    folder = run.folder
    if not run.config.resume and folder.path.exists():
        log.info("resume=false: starting %s afresh", folder.path)
        shutil.rmtree(folder.path)
    todo = _missing_answers(run)
    if folder.finished and not todo and not _missing_scores(run):
        log.info("already finished: %s", folder.path)
        return folder
    model = None
    if not folder.adapter.exists():
        model = _train(run)
    elif todo:
        model = load_tuned(run)
    folder.create(_yaml(run), _environment(run), FREE)
    if model is not None:
        _answer(run, model, todo)
    _judge(run)
    folder.finish()
    log.info("finished: %s", folder.path)
    return folder


def load_tuned(run: Run) -> PeftModel:
    """The base model with the adapter that the run has trained, ready to answer."""
    model = run.base.load()
    return PeftModel.from_pretrained(model, str(run.folder.adapter)).to(run.device).eval()


def answer(run: Run, model: Any, prompts: Sequence[BenchmarkPrompt], title: str) -> list[ResponseRow]:
    """The model's answers to `prompts`, in their order."""
    settings = run.config.evaluate
    texts = [prompt.text for prompt in prompts]
    answers = generate(
        model, run.base.tokenizer, texts, run.format, settings.max_new_tokens, settings.batch_size, f"answering {title}"
    )
    return [ResponseRow(p.id, p.text, text) for p, text in zip(prompts, answers, strict=True)]


def _harvested(config: RunConfig) -> Source:
    """The toxic source; where the config names none, the model's own harvest."""
    source = config.data.toxic_source
    if source.path is not None or source.id is not None or source.rows is not None:
        return source
    file = harvest_file(config)
    if not file.is_file():
        choice = f"experiment={config.experiment}" if config.experiment else f"model={config.model.name}"
        raise UserError(
            f"loss={config.loss.name} needs toxic rows, and {config.model.name} has no harvest at {file}:"
            f" make it with python -m tasft.harvest {choice}, or give data.toxic_source.path=<file>"
        )
    return replace(source, path=str(file))


def harvest_file(config: RunConfig) -> Path:
    """Where `tasft.harvest` writes the model's own harmful answers."""
    return Path(config.harvest.root) / str(config.model.name) / "toxic.jsonl"


def _untokenized(made: Example) -> Tokenized:
    """Stands for the tokens of a row while rows are only counted."""
    return Tokenized((0, 0), 1, made.toxic)


def _pretraining_texts(config: RunConfig, rows: dict[str, Any]) -> list[str] | None:
    """What a model from scratch is trained on: `data.pretraining`, else every usable row of the sources."""
    if config.model.scratch is None:
        return None
    texts = parts.pretraining_texts(config)
    if texts is not None:
        return texts
    format = prompt_format("stl" if config.data.format == "chat" else config.data.format, None)
    sources = {"data.safe": config.data.safe, "data.toxic_source": config.data.toxic_source}
    if "data.toxic_source" not in rows and config.data.toxic_source.path is not None:  # one base model for every loss
        rows = rows | {"data.toxic_source": read_rows(config.data.toxic_source, "data.toxic_source")}
    made = [example(row, sources[key].fields, False) for key in rows for row in rows[key]]
    usable = [e for e in made if isinstance(e, Example) and not e.history]
    return [format.answered(e.prompt, e.response, e.input)[0] for e in usable]


def _deciding(config: RunConfig, fingerprints: dict[str, str]) -> dict[str, Any]:
    """The keys that decide the numbers of the training; files count by their content."""
    model, data, loss = asdict(config.model), config.data, asdict(config.loss)
    for key in ("name", "epochs", "attention", "tuned_weight", "tuned_share"):
        del model[key]
    del loss["share"]
    used = toxic_used(config.loss.name, data.toxic)
    return {
        "model": model,
        "data": [data.safe.count, used, data.format, data.system, data.max_length, data.pretraining],
        "rows": fingerprints,
        "loss": loss,
        "optimizer": asdict(config.optimizer),
        "training": [config.epochs, config.batch_size, config.seed],
    }


def _train(run: Run) -> PeftModel:
    """Fine-tune to the end, from the last checkpoint where there is one, and write the adapter."""
    config, folder = run.config, run.folder
    base = run.base.load().to(run.device)
    model = with_lora(base, config.model.lora, config.seed)
    split_model = split(model)
    check_head(model, split_model)
    folder.create(_yaml(run), _environment(run), FREE)
    _write_rejected(folder.rejected, run.safe.rejected + run.toxic.rejected)
    checkpoint = last_checkpoint(folder.checkpoints)
    folder.truncate_metrics(int(checkpoint.stem.removeprefix("step")) if checkpoint else 0)
    uses_embedding = run.parts.objective.toxic is not None
    pad = run.base.tokenizer.pad_token_id
    module = FineTuning(
        model,
        split_model,
        token_embedding(model, config.loss.embedding) if uses_embedding else None,
        run.parts.objective,
        Cutting(
            config.trainer.max_tokens or MICRO_BATCH_TOKENS[run.device.type],
            config.trainer.packing,
            pad if pad is not None else run.base.tokenizer.eos_token_id,
        ),
        run.parts.make_optimizer,
        Schedule(config.optimizer.schedule, config.optimizer.warmup_steps, len(run.batches)),  # type: ignore[arg-type]
        config.optimizer.clip,
        config.seed,
    )
    relative = folder.path.relative_to(config.output_root)
    logger = parts.logger(config, folder.path, name=str(relative), group=config.experiment or str(config.model.name))
    files = Files(folder.checkpoints, folder.append_metrics, folder.append_speed)
    trainer = config.trainer
    fit(
        module, run.batches, files, trainer.accelerator, trainer.log_every, trainer.checkpoint_every, logger, checkpoint
    )
    if logger is not None:
        logger.experiment.finish()  # else the next run of a grid would go on in this one
    draft = folder.path / ".adapter"
    shutil.rmtree(draft, ignore_errors=True)
    model.save_pretrained(str(draft))
    draft.rename(folder.adapter)
    return model.to(run.device).eval()


def _missing_answers(run: Run) -> list[str]:
    """Benchmarks that the run has not answered."""
    return [name for name in run.config.benchmark if not run.folder.has_responses(name, len(run.batches))]


def _missing_scores(run: Run) -> list[tuple[str, str]]:
    """(benchmark, judge) pairs without scores, of those that make sense together."""
    step = len(run.batches)
    return [
        (name, judge)
        for name, benchmark in run.config.benchmark.items()
        for judge in benchmark.judges
        if judge in run.parts.judges and not run.folder.has_scores(name, step, judge)
    ]


def _answer(run: Run, model: Any, benchmarks: Sequence[str]) -> None:
    for name in benchmarks:
        run.folder.write_responses(name, len(run.batches), answer(run, model, run.parts.prompts[name], name))


def _judge(run: Run) -> None:
    step = len(run.batches)
    for benchmark, name in _missing_scores(run):
        rows = run.folder.read_responses(benchmark, step)
        run.folder.write_scores(benchmark, step, name, judge(run.parts.judges[name], rows))


def _write_rejected(file: Path, rejected: Sequence[Rejected]) -> None:
    file.write_text("".join(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in rejected))


def _yaml(run: Run) -> str:
    """The resolved config, with the share that the weight stands for."""
    described = asdict(run.config)
    used = toxic_used(run.config.loss.name, run.config.data.toxic)
    described["loss"]["share"] = run.weight.share if used else None
    return OmegaConf.to_yaml(OmegaConf.create(described))


def _environment(run: Run) -> dict[str, Any]:
    """What else the numbers came from."""
    config = run.config
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    packages = ("tasft", "torch", "lightning", "transformers", "peft", "hydra-core", "tokenizers")
    device = run.device
    licences = {key: s.licence for key, s in {"safe": config.data.safe, "toxic": config.data.toxic_source}.items()}
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() or None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine(),
        "world_size": 1,
        "data": run.fingerprints,
        "licences": licences,
        "weight": asdict(run.weight),
    }
