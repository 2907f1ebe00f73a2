"""Where the rows of a run's training data come from: its parts, each a count and a source."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from pathlib import Path

from tasft import parts
from tasft.base import Base
from tasft.config import CONF, given
from tasft.data.example import Example, Rejected, example
from tasft.data.kept import MOST, digest
from tasft.errors import UserError
from tasft.result.store import toxic_used
from tasft.schema import RunConfig, Source
from tasft.source import Row, read_rows


@dataclass(frozen=True)
class Part:
    """One part of the training data: how many rows are wanted of which source."""

    kind: str  # safe, safe_answers, contrastive, harmful or toxic
    count: int
    source: Source
    key: str  # of the source in the config
    count_key: str

    @property
    def toxic(self) -> bool:
        """Whether its rows are pushed away from; those of every other part are imitated."""
        return self.kind == "toxic"


def others(config: RunConfig) -> dict[str, int]:
    """What is mixed in beside safe and toxic rows, and how much of it."""
    data = config.data
    return {"safe_answers": data.safe_answers, "contrastive": data.contrastive, "harmful": data.harmful}


def wanted(config: RunConfig) -> Iterator[Part]:
    """The parts that the run trains on, one after the other; UserError where a source has to be made first."""
    data = config.data
    if data.safe.count:
        yield Part("safe", data.safe.count, parts.with_rows(data.safe, "data.safe"), "data.safe", "data.safe.count")
    counts = others(config)
    if data.filter != "saft_to_toxic":  # there the toxic rows are among the others
        counts["toxic"] = toxic_used(config.loss.name, data.toxic)
    made = {"contrastive": _contrastive_source, "toxic": _toxic_source}
    for kind, count in counts.items():
        if count:
            place = "pairs" if kind == "toxic" and config.loss.pairs else kind
            key = f"data.{place}_source"
            source = made[place](config) if place in made else parts.with_rows(getattr(data, f"{place}_source"), key)
            yield Part(kind, count, source, key, f"data.{kind}")


def examples_of(rows: Sequence[Row], part: Part) -> list[Example | Rejected]:
    """Every row as an example, or why it is none."""
    return [example(row, part.source.fields, part.toxic) for row in rows]


@dataclass(frozen=True)
class Loaded:
    """The rows of a part's source, each also as an example or why it is none."""

    part: Part
    rows: list[Row]

    @cached_property
    def examples(self) -> list[Example | Rejected]:
        """UserError where a row lacks a column."""
        return examples_of(self.rows, self.part)

    @cached_property
    def digest(self) -> str:
        """Of all that they say."""
        return digest([astuple(each) for each in self.examples])


_loaded: OrderedDict[str, Loaded] = OrderedDict()


def load(part: Part) -> Loaded:
    """The part's rows; a file that has not changed is read once in a process. UserError where it cannot be read."""
    path = Path(part.source.path or "").expanduser().absolute()
    state = path.stat() if path.is_file() else None
    seen = (part.key, part.toxic, repr(part.source), path, state and (state.st_mtime_ns, state.st_size))
    key = hashlib.sha256(repr(seen).encode()).hexdigest()
    if key not in _loaded:
        _loaded[key] = Loaded(part, read_rows(part.source, part.key))
        while len(_loaded) > MOST:
            _loaded.popitem(last=False)
    _loaded.move_to_end(key)
    return _loaded[key]


def harvest_file(config: RunConfig) -> Path:
    """Where `tasft.harvest` writes the model's own harmful answers."""
    return Path(config.harvest.root) / str(config.model.name) / "toxic.jsonl"


def model_identity(config: RunConfig, base: Base) -> str:
    """What a harvest says it comes from; a model from scratch is told by what it was trained on, too."""
    told = str(config.model.path or f"{config.model.name} {base.identity[0]}")
    return " ".join([told, *(f"with {each.name}" for each in base.adapters)])


def check_harvest(config: RunConfig, base: Base, rows: Sequence[Row]) -> None:
    """UserError where the toxic rows are the harvest of another model."""
    if given(config.data.toxic_source) or config.loss.pairs:
        return
    other = {str(row.values.get("model")) for row in rows} - {model_identity(config, base)}
    if other:
        raise UserError(
            f"{harvest_file(config)} is the harvest of {', '.join(sorted(other))}, not of"
            f" {model_identity(config, base)}: give another harvest.root, or data.toxic_source.path=<file>"
        )


def _toxic_source(config: RunConfig) -> Source:
    """The toxic source; where the config names none, the model's own harvest."""
    source = config.data.toxic_source
    if given(source):
        return parts.with_rows(source, "data.toxic_source")
    file = harvest_file(config)
    if not file.is_file():
        named = (CONF / "model" / f"{config.model.name}.yaml").is_file()
        model = f"model={config.model.name}" if named else f"model=hf model.path={config.model.path}"
        choice = f"experiment={config.experiment}" if config.experiment else model
        raise UserError(
            f"loss={config.loss.name} needs toxic rows, and {config.model.name} has no harvest at {file}: make it with"
            f" python -m tasft.harvest {choice} (and this run's data), or give data.toxic_source.path=<file>"
        )
    return replace(source, path=str(file))


def contrastive_file(config: RunConfig) -> Path:
    """Where `tasft.contrastive` writes its pairs."""
    return Path(config.contrastive.root) / config.data.name / "pairs.jsonl"


def _contrastive_source(config: RunConfig) -> Source:
    """The contrastive source; where the config names none, what `tasft.contrastive` has made."""
    source = config.data.contrastive_source
    if given(source):
        return parts.with_rows(source, "data.contrastive_source")
    file = contrastive_file(config)
    if not file.is_file():
        choice = f"experiment={config.experiment}" if config.experiment else f"data={config.data.name}"
        raise UserError(
            f"data.contrastive={config.data.contrastive} needs contrastive rows, and there are none at {file}:"
            f" make them with python -m tasft.contrastive {choice}, or give data.contrastive_source.path=<file>"
        )
    return replace(source, path=str(file))
