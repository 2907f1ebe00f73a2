"""The command that makes a run again, from its config alone.

Not the command line that was typed: defaults change from version to version, a search types no λ, and runs of earlier
versions kept none. What the run's config has in other words than today's defaults is given, so that today's version
makes the same run. Logging and servers decide no number, and are left out.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from tasft.config import CONF, register
from tasft.result.origin import origin
from tasft.result.store import below, flatten

# What other commands look at, what says how a run is watched, and what follows from other keys
ASIDE = (
    *"ask inspect agreement prefill attack harvest contrastive logger resume experiment evaluate.server".split(),
    *"model.tuned_weight model.tuned_share model.epochs loss.name data.name optimizer.name trainer.name".split(),
)
PLAIN = re.compile(r"[A-Za-z0-9_./:@-]*[A-Za-z_/][A-Za-z0-9_./:@-]*")  # text that Hydra's grammar takes unquoted
_MISSING = object()


@dataclass(frozen=True)
class Command:
    """Overrides of `python -m tasft.run`, and the keys of the run's config that this version does not know."""

    overrides: tuple[str, ...]
    unknown: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The command, quoted for a shell."""
        return shlex.join(["python", "-m", "tasft.run", *self.overrides])


@dataclass(frozen=True)
class _Base:
    """A composed config before any key is given: its nodes, and its leaves as they stand and resolved."""

    cfg: DictConfig
    nodes: dict[str, Any]  # as plain dictionaries
    raw: dict[str, Any]
    leaves: dict[str, Any]


def command(config: Mapping[str, Any]) -> Command:
    """The command for a run's config.yaml; what it does not say keeps its default."""
    aside = list(ASIDE)
    loss, data, model = (config.get(group) or {} for group in ("loss", "data", "model"))
    aside += ["loss.weight", "loss.share"]  # decided below
    aside += [] if data.get("filter") else ["saft"]
    aside += [] if loss.get("weight") == "auto" else ["auto"]
    aside += ["model.name"] if model.get("adapter") else []  # follows from the adapter
    choices = _choices(config)
    base = _base(choices)
    wanted = {key: value for key, value in flatten(config).items() if not below(key, aside)}
    there = ("benchmark", "judge")
    strange = [  # people's labels, and what only another checkout knows, cannot be chosen here
        f"{group}.{name}" for group in there for name in config.get(group) or {} if name not in base.cfg[group]
    ]
    wanted = {key: value for key, value in wanted.items() if key not in there and not below(key, strange)}
    given, unknown = _given(base, wanted, config, aside)
    with _with(base, given) as cfg:
        follows = {key: _selected(cfg, key) for key in wanted if _interpolation(base.raw.get(key))}
    given |= {key: wanted[key] for key, value in follows.items() if wanted[key] != value}
    given |= _weight(base, given, loss)
    words = [f"{key}={_value(value)}" if value is not _MISSING else key for key, value in given.items()]
    return Command((*choices, *words), tuple(unknown))


def _choices(config: Mapping[str, Any]) -> tuple[str, ...]:
    """`experiment=demo loss=nlcl`: what is chosen of each group otherwise than by default."""
    experiment = str(config.get("experiment") or "")
    chosen = [f"experiment={experiment}"] if _is_choice("experiment", experiment) else []
    leaves = _base(tuple(chosen)).leaves
    for group in ("model", "data", "loss", "optimizer", "trainer"):
        node = config.get(group) or {}
        name = str(node.get("name"))
        if group == "model" and node.get("adapter"):
            was = origin(name)
            name = was.model if was else name.partition("-from_")[0]
        if leaves.get(f"{group}.name") == name:
            continue
        if not _is_choice(group, name):
            name = {"model": "scratch" if node.get("scratch") else "hf", "data": "local"}.get(group, "")
        if name and node:
            chosen.append(f"{group}={name}")
    for group in ("benchmark", "judge"):
        names = [name for name in config.get(group) or {} if _is_choice(group, name)]
        there = list(dict.fromkeys(key.split(".")[1] for key in leaves if key.startswith(group + ".")))
        if names != there and group in config:
            chosen.append(f"{group}=[{','.join(names)}]")
    return tuple(chosen)


def _is_choice(group: str, name: str) -> bool:
    return bool(name) and (CONF / group / f"{name}.yaml").is_file()


@lru_cache(maxsize=256)
def _base(choices: tuple[str, ...]) -> _Base:
    """The config of these choices; HydraException or OmegaConfBaseException where they do not go together."""
    register()
    around, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None  # a command that reports at its end
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("run", overrides=list(choices))
    finally:
        GlobalHydra.instance().hydra = around
    nodes: Any = OmegaConf.to_container(cfg, resolve=False)
    raw = flatten(nodes)
    leaves = {key: _selected(cfg, key) if _interpolation(value) else value for key, value in raw.items()}
    return _Base(cfg, nodes, raw, leaves)


def _given(
    base: _Base, wanted: dict[str, Any], config: Mapping[str, Any], aside: list[str]
) -> tuple[dict[str, Any], list[str]]:
    """Key -> value for what does not follow from another key; the keys that this version does not know."""
    given: dict[str, Any] = {}
    unknown = []
    for key, value in wanted.items():
        if key in base.raw:
            if not _interpolation(base.raw[key]) and base.leaves[key] != value:
                given[key] = value
            continue
        parent = next((up for up in _parents(key) if up in base.raw), None)
        if parent is not None:  # a mapping where the default has null or nothing
            given[parent if base.raw[parent] is None else f"+{parent}"] = _at(config, parent)
        elif _at(base.nodes, key) is not None:
            if value is None:  # null where the default has a mapping
                given[key] = None
        elif _has_no_schema(base.cfg, next(_parents(key), "")):
            given[f"+{key}"] = value
        else:
            unknown.append(key)
    for key in base.raw:  # of mappings without a schema: columns to choose rows by, arguments of a loss
        up = key.rpartition(".")[0]
        mapping = _at(config, up)
        if (
            isinstance(mapping, dict)
            and key.rpartition(".")[2] not in mapping
            and not below(key, [*aside, "judge"])
            and _has_no_schema(base.cfg, up)
        ):
            given[f"~{key}"] = _MISSING
    return given, unknown


def _weight(base: _Base, given: Mapping[str, Any], loss: Mapping[str, Any]) -> dict[str, Any]:
    """What says λ, where it does not follow from the defaults: the share, if it is shorter and gives the same λ."""
    weight, share = loss.get("weight"), loss.get("share")
    if weight is None:
        return {}
    tries: list[dict[str, Any]] = [{}]
    by_share = share is not None and _interpolation(base.raw.get("loss.weight"))
    if by_share and weight != "auto" and len(_value(share)) <= len(_value(weight)):
        tries.append({"loss.share": share})
    for each in tries:
        with _with(base, {**given, **each}) as cfg:
            if _selected(cfg, "loss.weight") == weight:
                return each
    drop = {} if base.raw.get("loss.share") is None else {"loss.share": None}
    return drop | {"loss.weight": weight}


@contextmanager
def _with(base: _Base, given: Mapping[str, Any]) -> Iterator[DictConfig]:
    """The base config with keys given; put back afterwards, as a copy costs more than all the rest."""
    values = {key.lstrip("+"): value for key, value in given.items() if value is not _MISSING}
    for key, value in values.items():
        OmegaConf.update(base.cfg, key, value, merge=False, force_add=True)
    try:
        yield base.cfg
    finally:
        for key in values:
            up, _, leaf = key.rpartition(".")
            if leaf in (_at(base.nodes, up) if up else base.nodes):
                OmegaConf.update(base.cfg, key, _at(base.nodes, key), merge=False, force_add=True)
            else:
                with open_dict(base.cfg):
                    OmegaConf.select(base.cfg, up).pop(leaf)


def _has_no_schema(cfg: DictConfig, key: str) -> bool:
    """Whether a mapping takes keys of any name, as a judge's or a loss's arguments."""
    node = OmegaConf.select(cfg, key)
    return OmegaConf.is_dict(node) and OmegaConf.get_type(node) is dict


def _selected(cfg: DictConfig, key: str) -> Any:
    """The value of a leaf with what it refers to; None where that cannot be had, as λ of a model without one."""
    try:
        value = OmegaConf.select(cfg, key)
    except (OmegaConfBaseException, HydraException, AttributeError):
        return None
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _interpolation(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


def _parents(key: str) -> Iterator[str]:
    while "." in key:
        key = key.rpartition(".")[0]
        yield key


def _at(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _value(value: Any) -> str:
    """A value in the grammar of Hydra's command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(_value, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_value(str(key))}: {_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, str) and not (PLAIN.fullmatch(value) and _reads_as(value)):
        quoted = re.sub(r'(\\*)"', r'\1\1\\"', value)  # in front of a quote a backslash stands for itself when doubled
        return '"' + re.sub(r"(\\+)$", r"\1\1", quoted) + '"'
    return str(value)


@lru_cache(maxsize=4096)
def _reads_as(text: str) -> bool:
    """Whether a text stays that text unquoted: null, true and 1e5 do not."""
    try:
        return bool(OverridesParser.create().parse_override(f"key={text}").value() == text)
    except HydraException:
        return False
