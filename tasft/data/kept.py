"""Chosen and tokenized rows, made once and kept: in the cache folder for every cell of a grid, and in this process."""

import hashlib
import json
import os
import uuid
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tasft.data.example import Example, Rejected
from tasft.data.mixture import Chosen
from tasft.data.tokenize import Tokenized
from tasft.source import cache_folder

RECIPE = 1  # counts changes of how rows are chosen and tokenized: what an older one has made is not used again
MOST = 16  # of a process

_known: OrderedDict[str, Chosen] = OrderedDict()


def digest(*deciding: Any) -> str:
    """Sixteen hex digits of what decides something, as JSON."""
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]


def kept(deciding: Sequence[Any], examples: Sequence[Example | Rejected], make: Callable[[], Chosen]) -> Chosen:
    """What `make` chooses of `examples`; `deciding` says, as JSON, what else that hangs on.

    Processes that want the same at once may both make it: it is written whole, and the same.
    """
    name = digest(RECIPE, version("tokenizers"), version("transformers"), *deciding)
    if name not in _known:
        file = cache_folder() / "tokens" / f"{name}.npz"
        found = _read(file, examples)
        if found is None:
            found = make()
            with suppress(OSError):  # it can be made again
                _write(file, found, examples)
        _known[name] = found
        while len(_known) > MOST:
            _known.popitem(last=False)
    _known.move_to_end(name)
    return _known[name]


def _write(file: Path, chosen: Chosen, examples: Sequence[Example | Rejected]) -> None:
    index = {id(each): i for i, each in enumerate(examples)}
    halves = [half for tokens in chosen.tokens for half in tokens.halves]
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(f".{uuid.uuid4().hex}.npz")  # several machines may share the folder
    try:
        np.savez(
            draft,
            index=np.array([index[id(each)] for each in chosen.examples], np.int64),
            ids=np.array([token for half in halves for token in half.input_ids], np.int32),
            lengths=np.array([len(half.input_ids) for half in halves], np.int64),
            prompts=np.array([half.prompt_length for half in halves], np.int64),
            toxic=np.array([half.toxic for half in halves], bool),
            truncated=np.array([half.truncated for half in halves], bool),
            paired=np.array([tokens.rejected is not None for tokens in chosen.tokens], bool),
            rejected=np.array(json.dumps([asdict(each) for each in chosen.rejected])),
        )
        os.replace(draft, file)
    finally:
        draft.unlink(missing_ok=True)


def _read(file: Path, examples: Sequence[Example | Rejected]) -> Chosen | None:
    """What is kept; None where nothing is, or what a full disk has cut short."""
    try:
        with np.load(file) as data:
            arrays = {name: data[name] for name in data.files}
        halves = _halves(arrays)
        tokens = [replace(next(halves), rejected=next(halves)) if pair else next(halves) for pair in arrays["paired"]]
        made = [examples[i] for i in arrays["index"].tolist()]
        rejected = [Rejected(**each) for each in json.loads(str(arrays["rejected"]))]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return Chosen([each for each in made if isinstance(each, Example)], tokens, rejected)


def _halves(arrays: dict[str, np.ndarray]) -> Iterator[Tokenized]:
    ids, at = arrays["ids"].tolist(), 0
    columns = (arrays[name].tolist() for name in ("lengths", "prompts", "toxic", "truncated"))
    for length, prompt, toxic, truncated in zip(*columns, strict=True):
        yield Tokenized(tuple(ids[at : at + length]), prompt, toxic, truncated)
        at += length
