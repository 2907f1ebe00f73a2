"""Everything about a run that can be checked before anything slow happens or anything is written."""

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import transformers
from omegaconf import DictConfig

from tasft import parts, track
from tasft.base import Base, base_of
from tasft.config import checked, given, tuned
from tasft.contamination import contaminated
from tasft.data.example import Example, Rejected, example
from tasft.data.kept import kept
from tasft.data.mixture import Chosen, choose, summary
from tasft.data.steps import StepBatches
from tasft.data.tokenize import Encoder, Tokenized
from tasft.errors import UserError
from tasft.evaluate.tasks import check_tasks
from tasft.flagging import flag
from tasft.loss.tuned import ChosenWeight
from tasft.prompt import Format, prompt_format
from tasft.result.cost import Meter
from tasft.result.store import RunDir, check_writable, identity, run_path
from tasft.schema import RunConfig
from tasft.source import Row, read_rows
from tasft.train.group import check_devices, world_size
from tasft.training_data import Loaded, Part, check_harvest, examples_of, load, others, wanted

log = logging.getLogger(__name__)

Encode = Callable[[Example], Tokenized | Rejected]

THREADS = torch.get_num_threads()  # PyTorch's choice, or OMP_NUM_THREADS

Mixture = dict[str, Chosen]  # by the kind of the part


@dataclass(frozen=True)
class Run:
    """A run whose config and files have been checked; nothing has been written but what the cache keeps."""

    config: RunConfig
    weight: ChosenWeight
    parts: parts.Parts
    base: Base
    format: Format
    mixture: Mixture

    @cached_property
    def folder(self) -> RunDir:
        """Where the run lives: named by what decides its numbers."""
        config, data = self.config, self.config.data
        mixed = [f"{kind}{count}" for kind, count in others(config).items() if count]
        path = run_path(
            Path(config.output_root), str(config.model.name), config.loss.name, data.toxic, config.loss.weight,
            config.seed, identity(self.deciding()), mixed + ([data.filter] if data.filter else []),
        )  # fmt: skip
        return RunDir(path)

    @cached_property
    def batches(self) -> StepBatches:
        """The step batches of the whole training."""
        config = self.config
        rows = [tokens for part in self.mixture.values() for tokens in part.tokens]
        return StepBatches(rows, config.batch_size, config.epochs, config.seed, self.parts.objective.weights)

    @property
    def step(self) -> int:
        """The optimizer step at which the training ends."""
        return len(self.batches)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return _device(self.config)

    @cached_property
    def meter(self) -> Meter:
        """What the run costs, into its folder."""
        return Meter(self.folder, world_size(self.config.trainer), gpu=self.device.type == "cuda")

    @property
    def licences(self) -> dict[str, str | None]:
        """Of the parts that are trained on; what the model made of itself is under none."""
        data = self.config.data
        kinds = set(self.mixture) - {"safe"}
        if data.filter == "saft_to_toxic":  # its toxic rows are rows of the other parts
            kinds -= {"toxic"}
        safe = {"safe": data.safe} if "safe" in self.mixture else {}
        sources = safe | {kind: getattr(data, f"{kind}_source") for kind in sorted(kinds)}
        return {kind: source.licence for kind, source in sources.items()}

    def deciding(self) -> dict[str, Any]:
        """What decides the numbers of the training; rows, texts and model folders count by their content."""
        config, model, loss = self.config, self.config.model, asdict(self.config.loss)
        del loss["share"], loss["factor"]  # the weight says it
        del loss["precompute_reference"]  # the same number sooner
        if config.loss.toxic is None:  # what only toxic rows look at
            for key in ("embedding", "toxic_eos", "weight"):
                del loss[key]
        if loss.get("weight") == "auto":
            loss["auto"] = asdict(config.auto)
        optimizer = asdict(config.optimizer)
        del optimizer["name"]
        return {
            "base": self.base.identity,
            "model": [model.dtype, asdict(model.lora)],
            "rows": {kind: part.fingerprint for kind, part in self.mixture.items()},
            "text": [config.data.format, config.data.system, config.data.max_length],
            "loss": loss,
            "optimizer": optimizer,
            "training": [config.epochs, config.batch_size, config.seed],
        }


def prepare(cfg: DictConfig, here: bool = True) -> Run:
    """Check the config, read and tokenize every row, filter them, name the folder. UserError for the first mistake.

    Quick, but where `data.filter` has to read the rows with the model; what it says is kept in the cache. here: whether
    the run is to be done on this machine, which then has to have its devices, and in this process.
    """
    quiet()
    config, weight = checked(cfg), tuned(cfg)
    check_writable(Path(config.output_root))
    if here:
        check_devices(config.trainer)
        torch.set_num_threads(config.trainer.threads or THREADS)  # another cell of a grid may have had its own
    track.check(config)
    built = parts.build(config)
    check_tasks(config.tasks)
    config = replace(config, judge={name: config.judge[name] for name in built.judges})
    built = replace(built, objective=replace(built.objective, weight=weight.weight))  # where auto starts, too
    parts_of: dict[str, Part] = {}
    read: dict[str, Loaded] = {}
    for part in wanted(config):
        parts_of[part.kind], read[part.kind] = part, load(part)
    rows, examples = ({kind: getattr(each, what) for kind, each in read.items()} for what in ("rows", "examples"))
    log.info(
        "%s on %s: %s rows, λ = %g (share %.3g, %s)",
        config.loss.name, config.model.name,
        ", ".join(f"{part.count:,} {kind.replace('_', ' ')}" for kind, part in parts_of.items()),
        weight.weight, weight.share, weight.why,
    )  # fmt: skip
    places = {text: e.source for each in examples.values() for e in each if isinstance(e, Example) for text in e.asked}
    dropped = contaminated(places, built.prompts, config.data.contamination)

    def chosen(encode: Encode, deciding: Sequence[Any]) -> Mixture:
        def usable(made: Example) -> Tokenized | Rejected:
            why = next((dropped[text] for text in made.asked if text in dropped), None)
            return encode(made) if why is None else Rejected(made.source, why)

        mixture: Mixture = {}
        for kind, part in parts_of.items():
            make = partial(
                choose, examples[kind], kind, part.count, config.seed, _outside(mixture, kind, usable), part.count_key
            )
            harmful = mixture["harmful"].fingerprint if "harmful" in mixture else None
            asked = [kind, part.count, config.seed, read[kind].digest, dropped, harmful]
            mixture[kind] = kept([*deciding, *asked], examples[kind], make)
        return mixture

    chosen(_untokenized, ["untokenized"])  # too few rows are noticed here, before a tokenizer is loaded or trained
    base = base_of(config.model, pretraining_texts(config, rows.get("safe", [])))
    check_harvest(config, base, rows.get("toxic", []))
    format = prompt_format(config.data.format, base.tokenizer, config.data.system)
    encode = Encoder(base.tokenizer, format, config.data.max_length, config.loss.toxic_eos)
    mixture = chosen(encode, encode.identity)
    for kind in mixture:
        _log_part(kind, mixture[kind], config.data.max_length)
    if config.data.filter is not None:
        mixture = _filtered(config, base, mixture, encode)
        imitated = sum(len(part.tokens) for kind, part in mixture.items() if kind != "toxic")
        weight = tuned(cfg, imitated)
        if config.loss.toxic is not None:
            if config.loss.weight != "auto":
                config.loss.weight = weight.weight
            built = replace(built, objective=replace(built.objective, weight=weight.weight))
            log.info("after data.filter=%s: λ = %g (share %.3g)", config.data.filter, weight.weight, weight.share)
    return Run(config, weight, built, base, format, mixture)


def _outside(mixture: Mixture, kind: str, encode: Encode) -> Encode:
    """`encode`, without the toxic rows that are among the harmful ones: nothing is both imitated and pushed away."""
    if kind != "toxic" or "harmful" not in mixture:
        return encode
    imitated = {(e.asked, e.response) for e in mixture["harmful"].examples}

    def checked(made: Example) -> Tokenized | Rejected:
        if (made.asked, made.response) in imitated:
            return Rejected(made.source, "already among data.harmful")
        return encode(made)

    return checked


def _filtered(config: RunConfig, base: Base, mixture: Mixture, encode: Encode) -> Mixture:
    """The mixture without the rows that the filter flags among safe and harmful ones, or with those as its toxic ones.

    Toxic rows are the `data.toxic` flagged ones with the highest scores. UserError where there are not so many.
    """
    data = config.data
    pool = [(kind, e, t) for kind in ("safe", "harmful") if kind in mixture for e, t in _pairs(mixture[kind])]
    tokens = [each for _, _, each in pool]
    max_tokens = config.trainer.max_tokens or 4096
    found = flag(config.saft, base, tokens, labelled(config, encode), _device(config), max_tokens, config.seed)
    flagged = [i for i in range(len(pool)) if found.flagged[i]]
    log.info("data.filter=%s: %s", data.filter, found.why)
    if data.harmful:
        true = sum(pool[i][0] == "harmful" for i in flagged)
        log.info("of the %d flagged rows %d are among the %d of data.harmful", len(flagged), true, data.harmful)
    ranked = sorted(flagged, key=lambda i: (-found.scores[i], i))[: data.toxic]
    pushed = set(ranked) if data.filter == "saft_to_toxic" else set()
    if data.filter == "saft_to_toxic" and len(ranked) < data.toxic:
        raise UserError(
            f"data.toxic={data.toxic}, but data.filter=saft_to_toxic flags only {len(ranked)} rows: ask for fewer,"
            " or flag more (saft.quantile, saft.threshold)"
        )
    result: Mixture = {}
    for kind, part in mixture.items():
        mine = [i for i in range(len(pool)) if pool[i][0] == kind]
        if not mine:  # no part of the pool
            result[kind] = part
            continue
        kept = [i for i in mine if not found.flagged[i]]
        reason = f"flagged by data.filter={data.filter}"
        out = [Rejected(pool[i][1].source, reason) for i in mine if found.flagged[i] and i not in pushed]
        result[kind] = Chosen([pool[i][1] for i in kept], [pool[i][2] for i in kept], part.rejected + out)
    if not any(part.tokens for kind, part in result.items() if kind != "toxic"):
        raise UserError(
            f"data.filter={data.filter} flags all {len(pool)} rows, so that none is left to imitate:"
            " flag fewer (saft.quantile, saft.threshold)"
        )
    if pushed:
        examples = [replace(pool[i][1], toxic=True) for i in ranked]
        again = [each for each in map(encode, examples) if isinstance(each, Tokenized)]  # all: they have been before
        result["toxic"] = Chosen(examples, again)
    return result


def labelled(config: RunConfig, encode: Encode) -> tuple[list[Tokenized], list[Tokenized]] | None:
    """The tokens of saft.labelled, safe and harmful ones; None where there are none."""
    both = []
    for kind, source in (("safe", config.saft.labelled.safe), ("harmful", config.saft.labelled.harmful)):
        if not given(source):
            return None
        key = f"saft.labelled.{kind}"
        part = Part(kind, source.count or 0, parts.with_rows(source, key), key, f"{key}.count")
        examples = examples_of(read_rows(part.source, key), part)
        if part.count:
            # an order of its own: from the data's own file they are not just the first rows of the mixture
            order = f"labelled {kind}"
            both.append(choose(examples, order, part.count, config.seed, encode, part.count_key).tokens)
        else:
            tokens = [encode(e) for e in examples if isinstance(e, Example)]
            both.append([t for t in tokens if isinstance(t, Tokenized)])
    return both[0], both[1]


def _pairs(part: Chosen) -> list[tuple[Example, Tokenized]]:
    return list(zip(part.examples, part.tokens, strict=True))


def _log_part(kind: str, part: Chosen, max_length: int) -> None:
    cut, name = sum(tokens.truncated for tokens in part.tokens), kind.replace("_", " ")
    if cut:
        log.info("%d of %d %s responses are cut at data.max_length=%d", cut, len(part.tokens), name, max_length)
    if part.rejected:
        log.info("passed over %s rows: %s", name, summary(part.rejected))


def _device(config: RunConfig) -> torch.device:
    gpu = config.trainer.accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")


def _untokenized(made: Example) -> Tokenized:
    """Stands for the tokens of a row while rows are only counted."""
    return Tokenized((0, 0), 1, made.toxic)


def pretraining_texts(config: RunConfig, safe_rows: list[Row]) -> list[str] | None:
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
    if given(config.data.toxic_source):
        source = parts.with_rows(config.data.toxic_source, "data.toxic_source")
        made += [example(row, source.fields, True) for row in read_rows(source, "data.toxic_source")]
    usable = [e for e in made if isinstance(e, Example) and not e.history]
    return [format.answered(e.prompt, e.response, e.input)[0] for e in usable]


def quiet() -> None:
    """Libraries' remarks on devices, deprecations and loading are no use to who reads a run's log."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="lightning.*|transformers.*|torch.*|peft.*")
