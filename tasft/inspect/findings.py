"""What is found in the sources of a data config, and which of their prompts a benchmark asks, too."""

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from tasft import parts
from tasft.base import base_of
from tasft.benchmark.prompts import read_prompts
from tasft.config import given
from tasft.data.example import Example, Rejected, example, prompt_of
from tasft.data.overlap import Overlap, normalised, overlaps
from tasft.data.tokenize import Encoder, Tokenized, prompt_ids
from tasft.errors import UserError
from tasft.prepare import pretraining_texts, quiet
from tasft.prompt import prompt_format
from tasft.schema import RunConfig, Source
from tasft.source import Row, read_rows
from tasft.training_data import contrastive_file, harvest_file

log = logging.getLogger(__name__)

PROMPTS = "toxic_prompts"
TOXIC_PROMPTS = ("toxic", "harmful", PROMPTS, "safe_answers", "labelled_harmful")  # texts to be shown when asked for
TOXIC_RESPONSES = ("toxic", "harmful", "labelled_harmful")


@dataclass(frozen=True)
class Place:
    """A source of the config, or why it is not looked at."""

    kind: str
    key: str
    source: Source
    count: int | None  # rows that the config takes; None: all
    unused: str = ""


@dataclass
class Found:
    """What one source holds; lengths are tokens where the tokenizer is at hand, else words."""

    place: Place
    error: str = ""  # why it cannot be read, or the first mistake among its rows
    mistakes: int = 0  # rows that would stop a run
    read: int = 0
    examples: list[Example] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    prompt_lengths: list[int] = field(default_factory=list)
    response_lengths: list[int] = field(default_factory=list)
    cut: int | None = None  # responses that data.max_length cuts; None: not known
    overlaps: dict[str, list[Overlap]] = field(default_factory=dict)  # by benchmark; index: of `asked`
    asked: list[str] = field(default_factory=list)  # what its users ask, each text once

    @property
    def repeated(self) -> tuple[int, int]:
        """Rows whose prompt, and rows whose prompt and response, an earlier row has."""
        prompts = {_prompt(e) for e in self.examples}
        pairs = {(*_prompt(e), e.response) for e in self.examples}
        return len(self.examples) - len(prompts), len(self.examples) - len(pairs)

    @property
    def contaminated(self) -> list[Example]:
        """Rows of which a turn is asked by a benchmark, or nearly so."""
        found = {self.asked[o.index] for each in self.overlaps.values() for o in each}
        return [e for e in self.examples if not found.isdisjoint(e.asked)]

    def available(self, policy: str) -> int:
        """Rows that a run can take: but for safe ones each prompt once, and where the policy drops, none asked."""
        dropped = {id(e) for e in self.contaminated} if policy == "drop" else set()
        kept = [e for e in self.examples if id(e) not in dropped]
        return len(kept) if self.place.kind == "safe" else len({_prompt(e) for e in kept})


@dataclass(frozen=True)
class Findings:
    """What was found in all sources of a config."""

    sources: list[Found]
    unit: str  # of the lengths
    no_tokens: str  # why they are no tokens
    benchmarks: dict[str, int]  # prompts of each
    problems: list[str]  # each a sentence


def look(config: RunConfig) -> Findings:
    """Read every source and benchmark; what cannot be read is among the problems."""
    quiet()
    problems: list[str] = []
    rows: dict[str, list[Row]] = {}
    found = []
    for place in places(config):
        each = Found(place)
        if not place.unused:
            log.info("reading %s", place.key)
            try:
                source = parts.with_rows(place.source, place.key)
                each.place = place = replace(place, source=source)
                rows[place.kind] = read_rows(source, place.key)
                _fill(each, rows[place.kind])
            except UserError as error:
                each.error = str(error)
        found.append(each)
    no_tokens = ""
    try:
        if config.model.scratch is not None and config.data.pretraining is None and "safe" not in rows:
            raise UserError("the tokenizer of a model from scratch comes from data.safe, which cannot be read")
        tokenizer = base_of(config.model, pretraining_texts(config, rows.get("safe", []))).tokenizer
        format = prompt_format(config.data.format, tokenizer, config.data.system)
    except UserError as error:
        no_tokens = str(error)
    for each in (each for each in found if each.examples):
        if no_tokens:
            _measure(each, _words)
            continue
        log.info("tokenizing %s rows of %s", f"{len(each.examples):,}", each.place.key)
        if each.place.kind == PROMPTS:
            _measure(each, lambda text: len(prompt_ids(tokenizer, format.prompt(text), format)))
        else:
            _encode(each, Encoder(tokenizer, format, config.data.max_length, config.loss.toxic_eos))
    prompts = {}
    for name, benchmark in config.benchmark.items():
        key = f"benchmark.{name}.source"
        try:
            prompts[name] = [p.text for p in read_prompts(parts.with_rows(benchmark.source, key), key)]
        except UserError as error:
            problems.append(str(error))
    for each in found:
        if each.examples:
            log.info("comparing %s with %d benchmarks", each.place.key, len(prompts))
            _compare(each, prompts, config.data.contamination.similarity)
    problems = [sentence for each in found for sentence in _problems(each, config)] + problems
    if no_tokens and not any(each.error for each in found):  # else that is why
        problems.append(no_tokens)
    return Findings(
        found, "words" if no_tokens else "tokens", no_tokens, {n: len(p) for n, p in prompts.items()}, problems
    )


def places(config: RunConfig) -> list[Place]:
    """Every source of the data config, with what it is to give."""
    data, experiment = config.data, config.experiment
    harvest = f"experiment={experiment}" if experiment else f"model={config.model.name} data={data.name}"
    pairs = f"experiment={experiment}" if experiment else f"data={data.name}"
    made = {
        "toxic": (harvest_file(config), f"python -m tasft.harvest {harvest}"),
        "contrastive": (contrastive_file(config), f"python -m tasft.contrastive {pairs}"),
    }
    found = [Place("safe", "data.safe", data.safe, data.safe.count)]
    for kind in ("toxic", "safe_answers", "contrastive", "harmful"):
        source, count, unused = getattr(data, f"{kind}_source"), getattr(data, kind), ""
        if not count:
            unused = f"not used: data.{kind}=0"
        elif kind == "toxic" and data.filter == "saft_to_toxic":
            unused = "not used: data.filter=saft_to_toxic takes the toxic rows from the others"
        elif not given(source) and kind in made:
            file, command = made[kind]
            source = replace(source, path=str(file))
            unused = "" if file.is_file() else f"none yet at {file}: {command} makes it"
        elif not given(source):
            unused = f"not given: data.{kind}_source.path=<file>"
        found.append(Place(kind, f"data.{kind}_source", source, count, unused))
    asks = any(not place.unused.startswith("not used") and not given(getattr(data, f"{place.kind}_source"))
               for place in found if place.kind in made)  # fmt: skip
    unused = "not given: data.toxic_prompts.path=<file>" if not given(data.toxic_prompts) else ""
    found.append(
        Place(PROMPTS, "data.toxic_prompts", data.toxic_prompts, data.toxic_prompts.count,
              unused if asks else "not used: nothing has to be harvested"),
    )  # fmt: skip
    for kind, source in (("safe", config.saft.labelled.safe), ("harmful", config.saft.labelled.harmful)):
        if data.filter is not None and given(source):
            found.append(Place(f"labelled_{kind}", f"saft.labelled.{kind}", source, source.count))
    return found


def _fill(found: Found, rows: Sequence[Row]) -> None:
    """Examples, rejected rows and mistakes of `rows`."""
    kind, fields = found.place.kind, found.place.source.fields
    found.read = len(rows)
    make = _only_prompt if kind == PROMPTS else partial(example, toxic=kind == "toxic")
    for row in rows:
        try:
            made = make(row, fields)
        except UserError as error:
            found.mistakes += 1
            found.error = found.error or str(error)
            continue
        if isinstance(made, Example):
            found.examples.append(made)
        else:
            found.rejected.append(made)


def _only_prompt(row: Row, fields: Any) -> Example | Rejected:
    prompt = prompt_of(row, fields)
    return Example(prompt, "", False, row.place) if isinstance(prompt, str) else prompt


def _encode(found: Found, encoder: Encoder) -> None:
    """Lengths in tokens; moves the rows that cannot be tokenized to the rejected ones."""
    whole = replace(encoder, max_length=sys.maxsize)
    kept = []
    found.cut = 0
    for each in found.examples:
        tokens = whole(each)
        if isinstance(tokens, Tokenized) and len(tokens.input_ids) > encoder.max_length:
            verdict = encoder(each)
            if isinstance(verdict, Rejected):
                tokens = verdict
            else:
                found.cut += 1
        if isinstance(tokens, Rejected):
            found.rejected.append(tokens)
            continue
        kept.append(each)
        found.prompt_lengths.append(tokens.prompt_length)
        found.response_lengths.append(tokens.response_length)
    found.examples = kept


def _measure(found: Found, length: Callable[[str], int]) -> None:
    """Lengths of prompts and responses by themselves."""
    found.prompt_lengths = [sum(map(length, e.asked)) for e in found.examples]
    found.response_lengths = [length(e.response) for e in found.examples if found.place.kind != PROMPTS]


def _words(text: str) -> int:
    return len(text.split())


def _compare(found: Found, benchmarks: dict[str, list[str]], similarity: float) -> None:
    """Overlaps with each benchmark; a text may overlap several."""
    found.asked = list(dict.fromkeys(text for e in found.examples for text in e.asked))
    some = [o.index for o in overlaps(found.asked, benchmarks, similarity)]  # the few that overlap any
    texts = [found.asked[i] for i in some]
    found.overlaps = {
        name: [replace(o, index=some[o.index]) for o in overlaps(texts, {name: prompts}, similarity)]
        for name, prompts in benchmarks.items()
    }


def counts(found: Found, benchmark: str) -> tuple[int, int]:
    """Prompts of `found` that the benchmark asks, and that it nearly asks; each once, however it is written."""
    equal = {normalised(found.asked[o.index]) for o in found.overlaps[benchmark] if o.similarity == 1}
    near = {normalised(found.asked[o.index]) for o in found.overlaps[benchmark] if o.similarity < 1}
    return len(equal), len(near)


def _problems(found: Found, config: RunConfig) -> list[str]:
    place, problems = found.place, []
    if found.mistakes > 1:
        problems.append(f"{found.mistakes:,} rows of {place.key} stop a run, the first: {found.error}")
    elif found.error:
        problems.append(found.error)
    settings = config.data.contamination
    if found.read and place.kind != PROMPTS:
        available = found.available(settings.policy)
        if place.count is not None and available < place.count:
            problems.append(f"{place.key} has only {available:,} rows that can be used, not {place.count:,}")
        if settings.policy == "refuse" and found.contaminated:
            problems.append(
                f"{len(found.contaminated):,} rows of {place.key} are asked by a benchmark, and"
                " data.contamination.policy=refuse"
            )
    return problems


def _prompt(made: Example) -> tuple[object, ...]:
    return made.prompt, made.input, made.history
