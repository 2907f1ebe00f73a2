"""Compose, resolve and check a configuration, and say in one sentence what is wrong with it. Imports no torch."""

import difflib
import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from tasft.errors import UserError
from tasft.loss.tuned import ChosenWeight, chosen_weight
from tasft.model.adapter import Adapter
from tasft.result.origin import tuned_name
from tasft.schema import KINDS, Benchmark, Loss, RunConfig, Source, Wandb

PACKAGE = Path(__file__).parent
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"  # installed, or a checkout
LAUNCHERS = ("joblib", "submitit_local", "submitit_slurm")  # of the extra `launchers`
FULL_SAID = re.compile(r"no space left on device|disk quota exceeded|\d+ requested and \d+ written", re.IGNORECASE)
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
NOTES = {"kinds": KINDS, "needs": ("reference", "category")}  # words of a judge's notes


def register() -> None:
    """Make the schema and the two resolvers known to Hydra."""
    ConfigStore.instance().store(name="schema", node=RunConfig)
    OmegaConf.register_new_resolver("weight", _weight, replace=True)
    OmegaConf.register_new_resolver("folder_name", _folder_name, replace=True)


def _weight(*, _root_: DictConfig) -> float:
    """`${weight:}`, the value of `loss.weight` where none is given."""
    return tuned(_root_).weight


def _folder_name(path: str | None) -> str | None:
    """`${folder_name:<path>}`, the last part of a path or of a hub id."""
    return Path(path).resolve().name if path else None


def tuned(cfg: DictConfig, safe: int | None = None) -> ChosenWeight:
    """The weight of `cfg`, its share and where they come from; `safe`: the imitated rows, once they are counted."""
    loss, model, data = cfg.loss, cfg.model, cfg.data
    if loss.toxic is None:
        return ChosenWeight(0.0, 0.0, "this loss leaves toxic rows out")
    given = None if OmegaConf.is_interpolation(loss, "weight") else loss.weight
    share = loss.share
    if given == "auto":
        given, share = None, cfg.auto.share  # λ starts there
    counts = (_imitated(cfg) if safe is None else safe, data.toxic)
    chosen = chosen_weight(
        loss.name, model.name, given, share, counts, loss.group, model.tuned_weight, model.tuned_share,
        loss.weighting, loss.balance,
    )  # fmt: skip
    if loss.factor == 1:
        return chosen
    return ChosenWeight(loss.factor * chosen.weight, loss.factor * chosen.share, f"{loss.factor:g} times {chosen.why}")


def plain_sft(cfg: DictConfig) -> DictConfig:
    """The same run under loss=sft."""
    plain = cfg.copy()
    OmegaConf.set_struct(plain, False)
    plain.loss = OmegaConf.merge(OmegaConf.structured(Loss), OmegaConf.load(CONF / "loss" / "sft.yaml"))
    OmegaConf.set_struct(plain, True)
    return plain


def _imitated(cfg: DictConfig) -> int:
    """How many rows are imitated, as far as the config can tell: a filter flags a share, or by a threshold."""
    data, unlabelled = cfg.data, cfg.data.safe.count + cfg.data.harmful
    flagged = round((cfg.saft.quantile or 0) * unlabelled) if data.filter else 0
    return int(unlabelled - flagged + data.safe_answers + data.contrastive)


def checked(cfg: DictConfig) -> RunConfig:
    """`cfg` with every interpolation resolved, as dataclasses, all ranges and rules held; else UserError."""
    raw = OmegaConf.to_container(cfg, resolve=False)
    for key in _missing(raw):
        group, _, leaf = key.rpartition(".")
        drop = f", or drop it: '~{group}'" if leaf == "kind" else ""  # an experiment may set more than is chosen
        raise UserError(f"{key} has no value: give {key}=...{drop}")
    _check_ranges(raw)
    _check_given(cfg)
    given = not OmegaConf.is_interpolation(cfg.loss, "weight") and cfg.loss.weight is not None
    if given and cfg.loss.share is not None:
        raise UserError(
            f"loss.weight={cfg.loss.weight} and loss.share={cfg.loss.share:g} are both given:"
            " give one (loss.share=null drops the share)"
        )
    if cfg.loss.factor != 1 and cfg.loss.toxic is not None and (given or cfg.loss.share is not None):
        key = "loss.weight" if given else "loss.share"
        raise UserError(f"loss.factor={cfg.loss.factor:g} is of the tuned λ, but {key} is given: drop one")
    try:
        config: RunConfig = _schema().validate_python(OmegaConf.to_container(cfg, resolve=True))
    except ValidationError as error:
        raise UserError(_range_sentence(error)) from None
    if config.loss.toxic is None:
        config.loss.weight = config.loss.share = None  # so that a grid over them holds plain SFT once
    if config.model.adapter is not None:
        adapter = Adapter(config.model.adapter)
        config.model.name = tuned_name(config.model.name, adapter.name)  # so that nothing of both models is mixed up
        config.model.adapter = str(adapter.folder)
    _check_rules(config)
    return config


@cache  # slow to build, and a grid checks hundreds
def _schema() -> TypeAdapter[RunConfig]:
    return TypeAdapter(RunConfig)


def _missing(node: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys whose value is ???."""
    for key, value in node.items():
        if value == MISSING:
            yield prefix + str(key)
        elif isinstance(value, dict):
            yield from _missing(value, f"{prefix}{key}.")


def _check_ranges(raw: Any) -> None:
    """Ranges of what stands there literally, before a resolver computes with it."""
    try:
        _schema().validate_python(raw)
    except ValidationError as error:
        wrong = [e for e in error.errors() if not (isinstance(e["input"], str) and "${" in e["input"])]
        if wrong:
            raise UserError(_range_sentence(error, wrong[0])) from None


def _range_sentence(error: ValidationError, first: Any = None, prefix: str = "") -> str:
    first = first or error.errors()[0]
    key = prefix + ".".join(str(part) for part in first["loc"] if not str(part)[0].isupper())
    if first["type"] == "unexpected_keyword_argument":
        return _unknown(key)
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{key}={first['input']}: it {message}"


def _check_given(cfg: DictConfig) -> None:
    """What has no default and is needed before anything can be computed."""
    if cfg.model.scratch is None and cfg.model.path is None:
        raise UserError("model.path is not given: give a Hugging Face id or a local folder, or use model=scratch")
    if cfg.model.scratch is not None and cfg.model.path is not None:
        raise UserError(
            f"model.path={cfg.model.path}, but this model is trained from scratch: use model=hf, or model.path=null"
        )
    if cfg.data.safe.count is None:
        raise UserError(
            "data.safe.count is not given: say how many safe rows to use (the weight of the toxic rows follows from it)"
        )
    sources = {
        "data.safe": cfg.data.safe,
        **{f"benchmark.{name}.source": b.source for name, b in cfg.benchmark.items()},
    }
    for key, source in sources.items():
        if source.path is None and source.id is None and source.rows is None:
            raise UserError(f"{key} says no place to read from: give {key}.path=<file> or {key}.id=<data set>")
    kinds = ("toxic", "safe_answers", "contrastive", "harmful")
    sources |= {f"data.{kind}_source": cfg.data[f"{kind}_source"] for kind in kinds}
    sources |= {"data.toxic_prompts": cfg.data.toxic_prompts}
    sources |= {f"saft.labelled.{kind}": cfg.saft.labelled[kind] for kind in ("safe", "harmful")}
    for key, source in sources.items():
        if source.count == 0 and key != "data.safe":
            raise UserError(f"{key}.count=0: it should be greater than or equal to 1")
        if source.path is not None and source.rows is not None:
            raise UserError(f"{key}.path and {key}.rows are both given: {key}.rows=null drops the function")


def _check_rules(config: RunConfig) -> None:
    """What no single key can say."""
    if (config.loss.toxic is None) != (config.loss.name == "sft"):
        raise UserError(f"loss.toxic={config.loss.toxic} under loss={config.loss.name}: only sft has no toxic term")
    if config.loss.toxic is not None and config.data.toxic == 0:
        raise UserError(f"loss={config.loss.name} needs toxic rows: give data.toxic=N, or use loss=sft")
    data = config.data
    if data.safe.count == data.safe_answers == data.contrastive == data.harmful == 0:
        raise UserError("data.safe.count=0 leaves nothing to imitate: give some, or data.harmful, data.safe_answers")
    _check_filter(config)
    _check_pairs(config)
    if config.data.system is not None and config.data.format != "chat":
        raise UserError(f"data.system needs data.format=chat, but data.format={config.data.format}")
    _check_judges(config)
    if config.logger and "_target_" not in config.logger:
        try:
            TypeAdapter(Wandb).validate_python(config.logger)
        except ValidationError as error:
            raise UserError(_range_sentence(error, prefix="logger.")) from None


def _check_judges(config: RunConfig) -> None:
    """That judges' notes can be read, and that every benchmark has a judge."""
    for name, node in config.judge.items():
        for note, known in NOTES.items():
            given = node.get(note, [])
            if not isinstance(given, list) or not set(given) <= set(known):
                raise UserError(f"judge.{name}.{note}={given}: it should be a list of {', '.join(known)}")
    for name, benchmark in config.benchmark.items():
        if not judges_of(config, name):
            files = sorted((CONF / "judge").glob("*.yaml"))
            loaded: dict[str, Any] = {file.stem: OmegaConf.load(file) for file in files}
            nodes = {name: node[name] for name, node in loaded.items() if name in node}  # some name several others
            fitting = benchmark.judges or [judge for judge, node in nodes.items() if _fits(node, benchmark)]
            raise UserError(
                f"no judge for benchmark {name}: it knows {', '.join(fitting)},"
                f" but judge=[{','.join(config.judge)}]; add one to judge=[...]"
            )


def judges_of(config: RunConfig, benchmark: str) -> list[str]:
    """Those of the chosen judges that make sense on the answers to a benchmark.

    The benchmark's own list decides where it has one; else a judge's notes: `kinds` of prompts (without: all) and
    what it `needs` to find in the benchmark besides prompts.
    """
    asked = config.benchmark[benchmark]
    if asked.judges is not None:
        return [name for name in config.judge if name in asked.judges]
    return [name for name, node in config.judge.items() if _fits(node, asked)]


def _fits(node: Mapping[str, Any], benchmark: Benchmark) -> bool:
    has = all(getattr(benchmark.source.fields, column) for column in node.get("needs", []))
    return has and benchmark.kind in node.get("kinds", KINDS)


def _check_filter(config: RunConfig) -> None:
    """What a filter needs."""
    data, saft = config.data, config.saft
    if data.filter is None:
        return
    if data.filter == "saft_to_toxic" and config.loss.toxic is None:
        raise UserError(
            f"data.filter=saft_to_toxic makes rows toxic, which loss={config.loss.name} leaves out:"
            " use data.filter=saft, or a loss with a toxic term"
        )
    if saft.quantile is not None and saft.threshold is not None:
        raise UserError(
            f"saft.quantile={saft.quantile:g} and saft.threshold={saft.threshold:g} are both given: give one"
        )
    labelled = [given(source) for source in (saft.labelled.safe, saft.labelled.harmful)]
    if any(labelled) != all(labelled):
        raise UserError("saft.labelled needs both rows known to be safe and rows known to be harmful")
    if saft.quantile is None and saft.threshold is None and not all(labelled):
        raise UserError(
            f"data.filter={data.filter} does not know which rows to flag: give saft.quantile=0.1 (a share of them),"
            " saft.threshold, or a few known rows as saft.labelled.safe and saft.labelled.harmful"
        )


def _check_pairs(config: RunConfig) -> None:
    """What a loss over pairs needs."""
    loss, fields = config.loss, config.data.pairs_source.fields
    if not loss.pairs:
        return
    if loss.weight == "auto":
        raise UserError(f"loss.weight=auto follows toxic answers, and loss={loss.name} is over pairs: give a weight")
    if config.data.filter == "saft_to_toxic":
        raise UserError(f"data.filter=saft_to_toxic makes toxic rows, and loss={loss.name} is over pairs: use another")
    if not (fields.chosen and fields.rejected):
        raise UserError(
            f"loss={loss.name} is over pairs: give data.pairs_source.path=<file> and name its columns,"
            " 'data.pairs_source.fields={prompt: prompt, chosen: chosen, rejected: rejected}'"
        )


def given(source: Source) -> bool:
    """Whether a source says where its rows come from."""
    return source.path is not None or source.id is not None or source.rows is not None


def entry(task: Callable[[DictConfig], object], config_name: str) -> int:
    """Run `task` under Hydra with the command line's overrides; the exit code. Mistakes end in one sentence."""
    register()
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands exceptions on instead of printing them
    failed: list[Exception] = []

    def job(cfg: DictConfig) -> None:
        try:
            task(cfg)
        except Exception as error:
            if in_grid():
                raise  # the other jobs go on; Hydra names the overrides of this one
            failed.append(error)

    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
        for error in failed:
            raise error
    except KeyboardInterrupt:
        sys.stderr.write("tasft: interrupted; the same command goes on from the last checkpoint\n")
        return 130
    except Exception as error:
        sentence = mistake(error)
        if sentence is None or wants_traceback == "1":
            traceback.print_exc()
            return 1
        sys.stderr.write(f"tasft: {sentence}\n")
        return 1
    finally:
        os.environ["HYDRA_FULL_ERROR"] = wants_traceback or "0"
    return 0


def in_grid() -> bool:
    """Whether what runs is a cell of a grid."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def mistake(error: BaseException) -> str | None:
    """One sentence for a user's mistake; None for a bug of ours."""
    chain, link = [], error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__  # type: ignore[assignment]
    for link in chain:
        if isinstance(link, UserError):
            return str(link)
        if type(link).__name__ == "OutOfMemoryError":  # torch's, without importing it
            return "the GPU is out of memory: give a smaller trainer.max_tokens or evaluate.batch_size"
        if FULL_SAID.search(str(link)):  # in the words of whoever wrote
            return "the disk or a quota is full: make room; what is finished is readable, and the same command goes on"
        if isinstance(link, OSError) and link.errno in DENIED and link.filename is not None:
            return f"{link.filename}: {str(link.strerror).lower()}; give yourself access, or choose another place"
        if isinstance(link, MissingConfigException):
            return _missing_choice(link)
        null = re.search(r"^'NoneType' object .*full_key: (\S+)", str(link), re.DOTALL)  # a bug of OmegaConf's
        if null is not None and type(link) is AttributeError:
            return f"{null[1]} is null, which takes no mapping on the command line: give it in a yaml file"
    # the innermost says it best, but OmegaConf leaves some of those as templates
    ours = [
        link for link in chain if isinstance(link, OmegaConfBaseException | HydraException) and "$" not in str(link)
    ]
    unparsed = next((link for link in chain if isinstance(link, OverrideParseException)), None)
    if unparsed is not None:
        key, equals, _ = unparsed.override.partition("=")
        if equals:
            return f"{unparsed.override} cannot be read: put the value in quotes of its own, '{key}=\"...\"'"
        return f"Error parsing override '{key}': give a key and its value, {key}=..."
    return _config_sentence(ours[-1]) if ours else None


def _missing_choice(error: MissingConfigException) -> str:
    wanted = str(error.missing_cfg_file or "")
    group, _, name = wanted.rpartition("/")
    if name in LAUNCHERS and group == "hydra/launcher":
        return f"hydra/launcher={name} is not installed: pip install 'tasft[launchers]'"
    options = sorted({*(file.stem for file in (CONF / group).glob("*.yaml")), *(error.options or [])})
    close = difflib.get_close_matches(name, options, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{group or 'config'}={name}: no such choice; {hint}there are {', '.join(options)}"


def _config_sentence(error: Exception) -> str:
    """Hydra's and OmegaConf's several lines as one, with the nearest key that exists."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["bad configuration"]
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key")]
    key = getattr(error, "full_key", None) or (named[0] if named else None)
    unknown = re.search(r"Key '([^']+)' (?:is not in struct|not in)", lines[0])
    if unknown:
        return _unknown(key or unknown[1])
    if "Environment variable" in lines[0]:
        lines[0] = lines[0].rstrip('"') + ": set it (conf says what to)"
    first = re.sub(r"^\w+ raised while resolving interpolation: ", "", lines[0]).strip('"')
    return f"{key}: {first}" if key and key not in first else first


def _unknown(key: str) -> str:
    known = _keys(RunConfig) + _keys(Wandb, "logger.")
    leaf = key.rpartition(".")[2]
    close = difflib.get_close_matches(key, known, 1) or [k for k in known if k.rpartition(".")[2] == leaf][:1]
    return f"there is no key {key}" + (f": did you mean {close[0]}?" if close else "; --cfg job shows them all")


def _keys(schema: type, prefix: str = "") -> list[str]:
    """Every dotted key of a dataclass tree."""
    hints, keys = get_type_hints(schema), []
    for each in fields(schema):
        key = prefix + each.name
        keys.append(key)
        for kind in (hints[each.name], *get_args(hints[each.name])):
            if isinstance(kind, type) and is_dataclass(kind):
                keys += _keys(kind, key + ".")
    return keys
