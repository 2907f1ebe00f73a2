"""Which rows of an unlabelled mixture SAFT flags as likely harmful, under the model that is to be fine-tuned."""

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from tasft.base import Base
from tasft.data.tokenize import Tokenized
from tasft.errors import UserError
from tasft.filter.saft import Detector, chosen_on, highest, unsupervised
from tasft.model.hidden import hidden_states, layer_count
from tasft.schema import Saft
from tasft.source import cache_folder

log = logging.getLogger(__name__)

RECIPE = 1  # counts changes of how rows are scored: scores of an older one are not used again

Labelled = tuple[Sequence[Tokenized], Sequence[Tokenized]]  # rows known to be safe, rows known to be harmful


@dataclass(frozen=True)
class Flagged:
    """What the filter says of N rows, and by what."""

    scores: np.ndarray  # (N,) higher: more likely harmful
    flagged: np.ndarray  # (N,) bool
    layer: int
    k: int
    threshold: float  # the lowest score that is flagged; infinite where none is
    why: str  # one line for the log


def flag(
    saft: Saft,
    base: Base,
    tokens: Sequence[Tokenized],
    labelled: Labelled | None,
    device: torch.device,
    max_tokens: int = 4096,
    seed: int = 0,
) -> Flagged:
    """Scores and flags of `tokens`, encoded as rows to imitate; from the cache where they have been computed before.

    Hidden states are those of the base model, before any fine-tuning, as in the paper. `max_tokens` of a forward pass
    decides nothing; `seed` is that of the randomized SVD. UserError where settings and rows or model do not fit.
    """
    _check(saft, tokens, labelled)
    file = cache_folder() / "saft" / f"{_digest(saft, base, tokens, labelled, seed)}.npz"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):  # other runs of a grid wait for the first
        found = _read(file)
        if found is None:
            found = _computed(saft, base, tokens, labelled, device, max_tokens, seed)
            _write(file, found)
    return found


def rows_and_labels(tokens: Sequence[Tokenized], labelled: Labelled | None) -> tuple[list[Tokenized], list[bool]]:
    """All rows that need hidden states, the labelled ones last; and which of those are harmful."""
    safe, harmful = labelled or ([], [])
    return [*tokens, *safe, *harmful], [False] * len(safe) + [True] * len(harmful)


def layers_to_read(saft: Saft, count: int, labelled: bool) -> list[int]:
    """The layers that the settings look at, of a model with `count`: one, or all where a labelled set chooses."""
    if saft.layer is not None:
        if saft.layer > count:
            raise UserError(f"saft.layer={saft.layer}, but this model has layers 0 (its embeddings) to {count}")
        return [saft.layer]
    return list(range(count + 1)) if labelled else [count // 2]


def detector(
    saft: Saft, states: dict[int, np.ndarray], labelled: dict[int, np.ndarray], harmful: Sequence[bool], seed: int
) -> Detector:
    """What finds harmful rows: chosen on the labelled rows where there are any. Both: layer -> hidden states."""
    if harmful:
        return chosen_on(states, labelled, harmful, saft.k, saft.svd, seed)
    ((layer, hidden),) = states.items()
    return unsupervised(hidden, layer, saft.k or 1, saft.svd, seed)


def flags(saft: Saft, found: Detector, scores: np.ndarray) -> np.ndarray:
    """Which rows are flagged (N,): the share saft.quantile, else those from the threshold on."""
    if saft.quantile is not None:
        return highest(scores, saft.quantile)
    threshold = saft.threshold if saft.threshold is not None else found.threshold
    assert threshold is not None, "checked before"
    return scores >= threshold


def _check(saft: Saft, tokens: Sequence[Tokenized], labelled: Labelled | None) -> None:
    if len(tokens) < 2:
        raise UserError(
            f"a filter needs at least 2 rows to compare, and there are {len(tokens)}: raise data.safe.count"
        )
    if labelled is not None:
        missing = [kind for kind, rows in zip(("safe", "harmful"), labelled, strict=True) if not rows]
        if missing:
            raise UserError(f"saft.labelled.{missing[0]} holds no usable row: both kinds are needed")
    elif saft.quantile is None and saft.threshold is None:
        raise UserError(
            "nothing says which rows to flag: give saft.quantile=0.1 (the share of the rows), saft.threshold,"
            " or a few known rows as saft.labelled.safe and saft.labelled.harmful"
        )
    # the missing EOS of rows to push away from would give them away
    assert not any(row.toxic for row in rows_and_labels(tokens, labelled)[0]), "rows are encoded as rows to imitate"


def _computed(
    saft: Saft,
    base: Base,
    tokens: Sequence[Tokenized],
    labelled: Labelled | None,
    device: torch.device,
    max_tokens: int,
    seed: int,
) -> Flagged:
    model = base.load(device).to(device)
    layers = layers_to_read(saft, layer_count(model), labelled is not None)
    rows, harmful = rows_and_labels(tokens, labelled)
    hidden = hidden_states(model, rows, saft.position, max_tokens, layers)
    count = len(tokens)
    states = {layer: hidden[i, :count] for i, layer in enumerate(layers)}
    found = detector(saft, states, {layer: hidden[i, count:] for i, layer in enumerate(layers)}, harmful, seed)
    scores = found.scores(states[found.layer])
    flagged = flags(saft, found, scores)
    threshold = float(scores[flagged].min()) if flagged.any() else float("inf")
    return Flagged(scores, flagged, found.layer, found.k, threshold, _why(saft, found, flagged, layer_count(model)))


def _why(saft: Saft, found: Detector, flagged: np.ndarray, layers: int) -> str:
    """What was flagged, by what, and who chose it."""
    if saft.quantile is not None:
        by = f"saft.quantile={saft.quantile:g}"
    elif saft.threshold is not None:
        by = f"saft.threshold={saft.threshold:g}"
    else:
        by = f"a threshold of {found.threshold:.4g}, the best on the labelled rows"
    chosen = "unsupervised" if found.auroc is None else f"AUROC {found.auroc:.3f} on the labelled rows"
    return (
        f"{flagged.sum()} of {len(flagged)} rows flagged by {by}; position {saft.position}, layer {found.layer} of"
        f" {layers}, k = {found.k}, {'high' if found.sign > 0 else 'low'} projections count as harmful ({chosen})"
    )


def _digest(saft: Saft, base: Base, tokens: Sequence[Tokenized], labelled: Labelled | None, seed: int) -> str:
    """Sixteen hex digits of all that decides the result."""
    settings = asdict(saft)
    del settings["labelled"], settings["harmful_shares"]
    rows = [[(row.input_ids, row.prompt_length) for row in part] for part in (tokens, *(labelled or ()))]
    described = json.dumps([RECIPE, base.identity, base.model.dtype, settings, seed, rows], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _read(file: Path) -> Flagged | None:
    """What was written; None where nothing was, or where it is damaged."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            values = {field.name: kept[field.name] for field in fields(Flagged)}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        log.info("%s is damaged and is made again", file)
        return None
    scalars = {name: value.item() for name, value in values.items() if value.ndim == 0}
    return Flagged(**{**values, **scalars})


def _write(file: Path, found: Flagged) -> None:
    partial = file.with_suffix(".part.npz")
    values: dict[str, Any] = {field.name: getattr(found, field.name) for field in fields(Flagged)}
    np.savez(partial, **values)
    os.replace(partial, file)
