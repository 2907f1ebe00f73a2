"""One run's folder: what lies where, written whole and readable after a crash.

    <output_root>/<model>/<loss>/toxic300-weight5.6/seed0-<hash>/
      config.yaml  environment.json  metrics.jsonl  speed.jsonl  cost.json  checkpoints/  adapter/  rejected.jsonl
      log.txt                             what a run in a grid has said
      responses/<benchmark>@<step>.jsonl  scores/<benchmark>@<step>.<judge>.jsonl
      responses/<benchmark>@<step>.json   what decided those answers; .unfinished.jsonl while they are made
      harvest/                            of plain SFT: answers to toxic prompts, and what judges say of them
      FINISHED                            written last

Of several processes only one may write.
"""

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tasft.errors import UserError
from tasft.result.rows import (
    ResponseRow,
    ScoreRow,
    damaged,
    read_objects,
    read_rows,
    write_atomically,
    write_rows,
    writing,
)

Number = int | float | str | None
LATER = {"evaluate.num_beams": 1}  # keys that runs of earlier versions lack, and what those did
_RESPONSES = re.compile(r"(?P<benchmark>[\w-]+)@(?P<step>\d+)\.jsonl")
_SCORES = re.compile(r"(?P<benchmark>[\w-]+)@(?P<step>\d+)\.(?P<judge>[\w-]+)\.jsonl")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads what OmegaConf's loader reads: 1e-5 is a number, and a date is text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(?:[0-9][0-9_]*\.?|\.)[0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789.")
)


def identity(config: Mapping[str, Any]) -> str:
    """Eight hex digits of the SHA-256 of `config` as JSON with sorted keys: equal values, equal digits."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def toxic_used(loss: str, toxic: int) -> int:
    """How many toxic rows a run trains on when its config asks for `toxic`: none under plain SFT."""
    return 0 if loss == "sft" else toxic


def run_path(
    output_root: Path,
    model: str,
    loss: str,
    toxic: int,
    weight: float | str | None,
    seed: int,
    digest: str,
    mixed: Sequence[str] = (),
) -> Path:
    """The folder of a run; `digest` is the `identity` of the keys that decide its numbers.

    `mixed` says what else is in the training data: `harmful100`, `saft`.
    """
    _name("model.name", model)
    cell = f"toxic{toxic_used(loss, toxic)}"
    if weight is not None and loss != "sft":
        cell += f"-weight{weight}" if isinstance(weight, str) else f"-weight{weight:g}"
    return Path(output_root) / model / loss / "-".join([cell, *mixed]) / f"seed{seed}-{digest}"


def check_writable(root: Path) -> None:
    """UserError where no folder can be made or written at `root`; leaves no file and no folder behind."""
    with writing(Path(root)):
        folder = Path(root).absolute()
        while not os.path.lexists(folder):
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            pass


def read_config(path: Path) -> dict[str, Any]:
    """A run's config.yaml as plain dictionaries; UserError where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
        config = yaml.load(text, _Loader)
        if "${" in text:  # mended by hand; OmegaConf takes twenty times as long
            config = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException):
        config = None
    if not isinstance(config, dict):
        raise UserError(f"{path} is damaged (no readable yaml mapping): mend it, or move its folder away")
    return {str(key): value for key, value in config.items()}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value for every leaf of nested dictionaries; lists and empty dictionaries are leaves."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def below(key: str, parents: Collection[str]) -> bool:
    """Whether a dotted key is one of `parents` or stands below one."""
    return any(key == parent or key.startswith(parent + ".") for parent in parents)


@dataclass(frozen=True)
class RunDir:
    """The folder at `path`, which `create` makes; reading needs no `create`."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Commit, versions, device, world size, data fingerprints and dates of the training."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """One line for each logged step, only numbers that repeat."""
        return self.path / "metrics.jsonl"

    @property
    def speed(self) -> Path:
        """Times, tokens/s and memory: numbers that do not repeat."""
        return self.path / "speed.jsonl"

    @property
    def cost(self) -> Path:
        """What the run has cost so far: numbers that do not repeat."""
        return self.path / "cost.json"

    @property
    def log(self) -> Path:
        """What a run in a grid has said."""
        return self.path / "log.txt"

    @property
    def rejected(self) -> Path:
        """Training rows that were left out, and why."""
        return self.path / "rejected.jsonl"

    @property
    def checkpoints(self) -> Path:
        """What training goes on from."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The trained adapter in PEFT's format."""
        return self.path / "adapter"

    @property
    def tasks(self) -> Path:
        """Results of lm-eval's tasks."""
        return self.path / "tasks"

    @property
    def harvest(self) -> Path:
        """What `tasft.harvest` has asked and judged, batch by batch."""
        return self.path / "harvest"

    def create(self, config_yaml: str, environment: Mapping[str, Any], free: Sequence[str] = ()) -> None:
        """Make the folder, or enter it again.

        A folder holds one config: UserError where the kept one differs, unless in a key at or below one of
        `free` (dotted keys that decide no number, such as judges). Where only free keys differ the kept file
        becomes old and new merged, new values winning, so that benchmarks and judges add up. environment.json
        stays that of the first time. UserError too where the folder cannot be written.
        """
        self.check(config_yaml, free)
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        if not self.environment.exists():
            write_atomically(self.environment, _strict_json(environment, indent=2) + "\n")
        if not self.config.exists():
            write_atomically(self.config, config_yaml)
            return
        new: Any = OmegaConf.create(config_yaml)
        kept = read_config(self.config)
        if kept != OmegaConf.to_container(new, resolve=True):
            merged: Any = OmegaConf.merge(kept, new)
            for group in ("judge", "benchmark"):  # each node as it is now: a key that it has lost decides nothing
                for name, node in (new.get(group) or {}).items():
                    merged[group][name] = node
            write_atomically(self.config, OmegaConf.to_yaml(merged))

    def add_judge(self, name: str, node: Mapping[str, Any]) -> None:
        """Put a judge into config.yaml, behind those that are there, or in the place of the one of its name."""
        kept = read_config(self.config)
        kept["judge"] = dict(kept.get("judge") or {}) | {_name("judge", name): dict(node)}
        write_atomically(self.config, OmegaConf.to_yaml(OmegaConf.create(kept)))

    def check(self, config_yaml: str, free: Sequence[str] = ()) -> None:
        """UserError where the folder holds a run with another config, beyond what is `free`; writes nothing."""
        if not self.config.exists():
            return
        new: Any = OmegaConf.to_container(OmegaConf.create(config_yaml), resolve=True)
        kept_leaves, new_leaves = flatten(read_config(self.config)), flatten(new)
        for key in sorted(kept_leaves.keys() | new_leaves.keys()):
            there, here = kept_leaves.get(key, LATER.get(key)), new_leaves.get(key)  # null and absent say the same
            if there != here and not below(key, free):
                raise UserError(
                    f"{self.path} holds a run with another config ({key} is {there} there, {here} here):"
                    " move it away, or give another output_root"
                )

    def append_metrics(self, row: Mapping[str, Number]) -> None:
        """Add a line to metrics.jsonl; `row` has an int "step". NaN and infinities are written as null."""
        _append(self.metrics, row)

    def append_speed(self, row: Mapping[str, Number]) -> None:
        """Add a line to speed.jsonl; `row` has an int "step". NaN and infinities are written as null."""
        _append(self.speed, row)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, none where there is no file; UserError for a damaged one."""
        return [values for _, values in read_objects(self.metrics)] if self.metrics.exists() else []

    def read_cost(self) -> dict[str, float]:
        """What the run has cost so far: `*_seconds`, devices, gpu_hours; empty for a run of before that was noted."""
        try:
            return dict(json.loads(self.cost.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    def truncate_metrics(self, after_step: int) -> None:
        """Drop the lines of both files past `after_step`, and a last line that a crash has cut short."""
        for path in (self.metrics, self.speed):
            if path.exists():
                _truncate(path, after_step)

    def write_responses(
        self, benchmark: str, step: int, rows: Iterable[ResponseRow], settings: Mapping[str, Any] | None = None
    ) -> None:
        """Write the answers to `benchmark` after optimizer step `step`, and beside them what decided them."""
        file = self._responses(benchmark, step)
        if settings is not None:  # a file of its own: readers of the rows know answers alone
            write_atomically(file.with_suffix(".json"), json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
        write_rows(file, rows)
        self.unfinished(benchmark, step).unlink(missing_ok=True)

    def read_settings(self, benchmark: str, step: int) -> dict[str, Any]:
        """What decided the answers, as it stands beside them; empty where there is nothing."""
        try:
            return dict(json.loads(self._responses(benchmark, step).with_suffix(".json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return {}

    def unfinished(self, benchmark: str, step: int) -> Path:
        """Where answers lie, batch by batch, until all of them are there."""
        return self._responses(benchmark, step).with_suffix(".unfinished.jsonl")

    def read_responses(self, benchmark: str, step: int) -> list[ResponseRow]:
        """The answers, in the order written; UserError for a missing or damaged file."""
        return read_rows(self._responses(benchmark, step), ResponseRow)

    def has_responses(self, benchmark: str, step: int) -> bool:
        """Whether the answers are there, which means all of them."""
        return self._responses(benchmark, step).is_file()

    def write_scores(self, benchmark: str, step: int, judge: str, rows: Iterable[ScoreRow]) -> None:
        """Write what `judge` said of the answers to `benchmark` after optimizer step `step`."""
        write_rows(self.scores(benchmark, step, judge), rows)

    def read_scores(self, benchmark: str, step: int, judge: str) -> list[ScoreRow]:
        """The scores, in the order written; UserError for a missing or damaged file."""
        return read_rows(self.scores(benchmark, step, judge), ScoreRow)

    def has_scores(self, benchmark: str, step: int, judge: str) -> bool:
        """Whether the scores are there, which means all of them."""
        return self.scores(benchmark, step, judge).is_file()

    def drop_scores(self, benchmark: str, step: int, judge: str | None = None) -> None:
        """Delete what `judge`, or every judge, said of the answers to `benchmark` after optimizer step `step`."""
        judges = "*" if judge is None else _name("judge", judge)
        for file in (self.path / "scores").glob(f"{_name('benchmark', benchmark)}@{step:d}.{judges}.jsonl"):
            file.unlink()
            file.with_suffix(".json").unlink(missing_ok=True)

    def responses_present(self) -> list[tuple[str, int]]:
        """(benchmark, step) of every file of answers, sorted."""
        names = _matches(self.path / "responses", _RESPONSES)
        return sorted((name["benchmark"], int(name["step"])) for name in names)

    def scores_present(self) -> list[tuple[str, int, str]]:
        """(benchmark, step, judge) of every file of scores, sorted."""
        names = _matches(self.path / "scores", _SCORES)
        return sorted((name["benchmark"], int(name["step"]), name["judge"]) for name in names)

    @property
    def finished(self) -> bool:
        """Whether all the run was asked for is there."""
        return (self.path / "FINISHED").exists()

    def finish(self) -> None:
        """Say that the run is complete; nothing is written after it but what a later judge adds."""
        write_atomically(self.path / "FINISHED", "")

    def _responses(self, benchmark: str, step: int) -> Path:
        return self.path / "responses" / f"{_name('benchmark', benchmark)}@{step:d}.jsonl"

    def scores(self, benchmark: str, step: int, judge: str) -> Path:
        """Where they are kept; beside it in .json, for judges with weights of their own, which weights have judged."""
        return self.path / "scores" / f"{_name('benchmark', benchmark)}@{step:d}.{_name('judge', judge)}.jsonl"


def _name(kind: str, name: str) -> str:
    if not re.fullmatch(r"[\w-]+", name):
        raise UserError(f"{kind} {name!r} cannot name a file: use letters, digits, _ and -")
    return name


def _matches(folder: Path, pattern: re.Pattern[str]) -> list[re.Match[str]]:
    found = (pattern.fullmatch(path.name) for path in folder.glob("[!.]*.jsonl"))
    return [match for match in found if match]


def _append(path: Path, row: Mapping[str, Number]) -> None:
    if type(row.get("step")) is not int:
        raise ValueError(f"{path.name} wants an int step, got {row.get('step')!r}")
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(_strict_json(row) + "\n")


def _strict_json(values: Mapping[str, Any], indent: int | None = None) -> str:
    """JSON without NaN and infinities, which most readers refuse: null stands for them (top level only)."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    return json.dumps(finite, ensure_ascii=False, allow_nan=False, indent=indent)


def _truncate(path: Path, after_step: int) -> None:
    with writing(path):
        text = path.read_bytes().decode(errors="replace")
    whole = text.split("\n")[:-1]  # what follows the last line break was cut short
    kept = []
    for number, line in enumerate(whole, start=1):
        try:
            if json.loads(line)["step"] <= after_step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            raise damaged(path, number, "no step") from None
    write_atomically(path, "".join(kept))
