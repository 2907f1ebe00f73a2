"""Everything about a run that can be checked before anything slow happens or anything is written."""

import logging
import warnings
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from omegaconf import DictConfig

from tasft import parts
from tasft.base import Base, base_of
from tasft.config import checked, tuned
from tasft.data.example import Example, example
from tasft.data.mixture import Chosen, choose, summary
from tasft.data.steps import StepBatches
from tasft.data.tokenize import Encoder, Tokenized
from tasft.errors import UserError
from tasft.loss.tuned import ChosenWeight
from tasft.model.loading import model_fingerprint
from tasft.prompt import Format, prompt_format
from tasft.result.store import RunDir, check_writable, identity, run_path, toxic_used
from tasft.schema import RunConfig, Source
from tasft.source import Row, read_rows

log = logging.getLogger(__name__)


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

    @cached_property
    def folder(self) -> RunDir:
        """Where the run lives: named by what decides its numbers."""
        config = self.config
        path = run_path(
            Path(config.output_root), str(config.model.name), config.loss.name, config.data.toxic,
            config.loss.weight, config.seed, identity(self.deciding()),
        )  # fmt: skip
        return RunDir(path)

    @cached_property
    def batches(self) -> StepBatches:
        """The step batches of the whole training."""
        config = self.config
        rows = self.safe.tokens + self.toxic.tokens
        return StepBatches(rows, config.batch_size, config.epochs, config.seed, self.parts.objective.weights)

    @property
    def step(self) -> int:
        """The optimizer step at which the training ends."""
        return len(self.batches)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        gpu = self.config.trainer.accelerator != "cpu" and torch.cuda.is_available()
        return torch.device("cuda" if gpu else "cpu")

    def deciding(self) -> dict[str, Any]:
        """What decides the numbers of the training; rows, texts and model folders count by their content."""
        config, model, loss = self.config, self.config.model, asdict(self.config.loss)
        del loss["share"]  # the weight says it
        if config.loss.toxic is None:  # what only toxic rows look at
            for key in ("embedding", "toxic_eos", "weight"):
                del loss[key]
        base = self.base.fingerprint if model.path is None else [model_fingerprint(model.path), model.revision]
        optimizer = asdict(config.optimizer)
        del optimizer["name"]
        return {
            "base": base,
            "model": [model.dtype, asdict(model.lora)],
            "rows": [self.safe.fingerprint, self.toxic.fingerprint],
            "text": [config.data.format, config.data.system, config.data.max_length],
            "loss": loss,
            "optimizer": optimizer,
            "training": [config.epochs, config.batch_size, config.seed],
        }


def prepare(cfg: DictConfig) -> Run:
    """Check the config, read and tokenize every row, name the folder. UserError for the first mistake found."""
    _quiet()
    config, weight = checked(cfg), tuned(cfg)
    check_writable(Path(config.output_root))
    if config.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError(
            "trainer.accelerator=gpu, but PyTorch finds no GPU: use trainer=cpu, or install a CUDA build of PyTorch"
        )
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    parts.check_logger(config)
    built = parts.build(config)
    safe_source = parts.with_rows(config.data.safe, "data.safe")
    safe_rows = read_rows(safe_source, "data.safe")
    used = toxic_used(config.loss.name, config.data.toxic)
    toxic_source = _toxic_source(config) if used else None
    toxic_rows = read_rows(toxic_source, "data.toxic_source") if toxic_source is not None else []
    log.info(
        "%s on %s: %s safe and %s toxic rows, λ = %g (share %.3g, %s)",
        config.loss.name, config.model.name, f"{config.data.safe.count:,}", used,
        weight.weight, weight.share, weight.why,
    )  # fmt: skip

    def chosen(encode: Any) -> tuple[Chosen, Chosen]:
        safe = choose(
            safe_rows, safe_source.fields, False, config.data.safe.count or 0, config.seed, encode, "data.safe.count"
        )
        if toxic_source is None:
            return safe, Chosen([], [])
        return safe, choose(toxic_rows, toxic_source.fields, True, used, config.seed, encode, "data.toxic")

    chosen(_untokenized)  # too few rows are noticed here, before a tokenizer is loaded or trained
    base = base_of(config.model, _pretraining_texts(config, safe_rows))
    format = prompt_format(config.data.format, base.tokenizer, config.data.system)
    safe, toxic = chosen(Encoder(base.tokenizer, format, config.data.max_length, config.loss.toxic_eos))
    for name, part in {"safe": safe, "toxic": toxic}.items():
        cut, total = sum(t.truncated for t in part.tokens), len(part.tokens)
        if cut:
            log.info("%d of %d %s responses are cut at data.max_length=%d", cut, total, name, config.data.max_length)
        if part.rejected:
            log.info("passed over %s rows: %s", name, summary(part.rejected))
    return Run(config, weight, built, base, format, safe, toxic)


def harvest_file(config: RunConfig) -> Path:
    """Where `tasft.harvest` writes the model's own harmful answers."""
    return Path(config.harvest.root) / str(config.model.name) / "toxic.jsonl"


def model_identity(config: RunConfig) -> str:
    """What a harvest says it comes from."""
    return str(config.model.path or config.model.name)


def _named(source: Source) -> bool:
    """Whether the config says where the rows come from."""
    return source.path is not None or source.id is not None or source.rows is not None


def _toxic_source(config: RunConfig) -> Source:
    """The toxic source; where the config names none, the model's own harvest."""
    source = config.data.toxic_source
    if _named(source):
        return parts.with_rows(source, "data.toxic_source")
    file = harvest_file(config)
    if not file.is_file():
        choice = f"experiment={config.experiment}" if config.experiment else f"model={config.model.name}"
        raise UserError(
            f"loss={config.loss.name} needs toxic rows, and {config.model.name} has no harvest at {file}: make it with"
            f" python -m tasft.harvest {choice} (and this run's data), or give data.toxic_source.path=<file>"
        )
    source = replace(source, path=str(file))
    other = {str(row.values.get("model")) for row in read_rows(source, "data.toxic_source")} - {model_identity(config)}
    if other:
        raise UserError(
            f"{file} is the harvest of {', '.join(sorted(other))}, not of {model_identity(config)}:"
            " give another harvest.root, or data.toxic_source.path=<file>"
        )
    return source


def _untokenized(made: Example) -> Tokenized:
    """Stands for the tokens of a row while rows are only counted."""
    return Tokenized((0, 0), 1, made.toxic)


def _pretraining_texts(config: RunConfig, safe_rows: list[Row]) -> list[str] | None:
    """What a model from scratch is trained on: `data.pretraining`, else every usable row of the sources.

    The same for every loss and count. A harvest never enters: it comes from this very model.
    """
    if config.model.scratch is None:
        return None
    texts = parts.pretraining_texts(config)
    if texts is not None:
        return texts
    format = prompt_format("stl" if config.data.format == "chat" else config.data.format, None)
    made = [example(row, config.data.safe.fields, False) for row in safe_rows]
    if _named(config.data.toxic_source):
        source = parts.with_rows(config.data.toxic_source, "data.toxic_source")
        made += [example(row, source.fields, True) for row in read_rows(source, "data.toxic_source")]
    usable = [e for e in made if isinstance(e, Example) and not e.history]
    return [format.answered(e.prompt, e.response, e.input)[0] for e in usable]


def _quiet() -> None:
    """Libraries' remarks on devices, deprecations and loading are no use to who reads a run's log."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="lightning.*|transformers.*|torch.*|peft.*")
