"""The base model of a run: loaded from where `model.path` says, or trained from scratch once and kept."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from pydantic import TypeAdapter, ValidationError
from transformers import AutoTokenizer, PreTrainedModel

from tasft.errors import UserError
from tasft.model.adapter import Adapter
from tasft.model.loading import load_base, load_tokenizer, model_fingerprint
from tasft.model.lora import merged
from tasft.model.scratch import fresh_llama, train_tokenizer
from tasft.result.rows import writing
from tasft.result.store import RunDir, read_config
from tasft.schema import Model
from tasft.source import cache_folder
from tasft.train.pretrain import pretrain

log = logging.getLogger(__name__)

RECIPE = 1  # counts changes of the training from scratch: a base model of an older one is not used again


@dataclass(frozen=True)
class Base:
    """A base model whose tokenizer is at hand and whose weights are loaded, or first trained, when asked for.

    A tuned model that is to be tuned again is one, too: the model that it was tuned from, with `adapters` merged in.
    """

    model: Model
    tokenizer: Any
    texts: list[str] | None = None  # of a model trained from scratch
    folder: Path | None = None  # where that one is kept
    adapters: tuple[Adapter, ...] = ()  # to merge in, one after the other

    @cached_property
    def identity(self) -> list[str | None]:
        """What decides the weights: the recipe of a model trained from scratch, the content of a folder, a revision.

        And the content of the adapters that are merged in.
        """
        merged_in = [f"adapter {each.digest}" for each in self.adapters]
        if self.folder is not None:
            return [self.folder.name, *merged_in]
        assert self.model.path is not None
        return [model_fingerprint(self.model.path), self.model.revision, *merged_in]

    @property
    def place(self) -> str:
        """Where the model without adapters is loaded from: an absolute folder, or a hub id."""
        place = self.folder or Path(str(self.model.path)).expanduser()
        return str(place.absolute()) if place.is_dir() else str(self.model.path)

    @property
    def weights(self) -> str | None:
        """Fingerprint of a model trained from scratch, whose identity says what it came from and not what came out."""
        there = self.folder is not None and (self.folder / "config.json").is_file()
        return model_fingerprint(str(self.folder)) if there else None

    def load(self, device: torch.device) -> PreTrainedModel:
        """The frozen causal language model; UserError where it cannot be had. One from scratch trains on `device`."""
        model = self._plain(device)
        for adapter in self.adapters:
            model = merged(model, adapter)
        return model

    def make(self, device: torch.device) -> None:
        """Train a model from scratch where that is not done yet; others of the same wait for it."""
        if self.folder is not None:
            with _only_one(self.folder):
                if not (self.folder / "config.json").is_file():
                    self._train(device)

    def _plain(self, device: torch.device) -> PreTrainedModel:
        if self.folder is None:
            assert self.model.path is not None
            return load_base(self.model.path, self.model.dtype, self.model.revision, self.model.attention)
        self.make(device)
        return load_base(str(self.folder), self.model.dtype, attention=self.model.attention)

    def _train(self, device: torch.device) -> None:
        assert self.model.scratch is not None and self.texts is not None and self.folder is not None
        log.info(
            "training the base model from scratch on %s texts, once; it is kept in %s",
            f"{len(self.texts):,}",
            self.folder,
        )
        model = fresh_llama(self.model.scratch, self.tokenizer)
        loss = pretrain(model, self.tokenizer, self.texts, self.model.scratch, device)
        log.info("base model: %s parameters, %.2f nats per token", f"{model.num_parameters():,}", loss)
        with _replacing(self.folder) as fresh:
            self.tokenizer.save_pretrained(fresh)
            model.save_pretrained(fresh)


def base_of(model: Model, texts: list[str] | None) -> Base:
    """The base model that `model` names; `texts` are what one from scratch is trained on. Quick: loads no weights.

    UserError where `model.adapter` was trained on another one.
    """
    base = _plain_base(model, texts)
    for adapter in Adapter(model.adapter).chain if model.adapter is not None else []:
        _check_trained_on(adapter, base)
        base = replace(base, adapters=(*base.adapters, adapter))
    return base


def base_of_run(adapter: Adapter, moved_to: str | None = None) -> Base:
    """The model that a finished run has trained `adapter` on, found again from the run's folder. Loads no weights.

    moved_to: where the model that was tuned lies now. UserError where it cannot be found, or is another one by now.
    """
    assert adapter.run is not None
    run, lowest = RunDir(adapter.run), adapter.chain[0]
    try:
        model = TypeAdapter(Model).validate_python(read_config(run.config)["model"])
    except (KeyError, ValidationError):
        raise UserError(f"{run.config} is no run's config: mend it, or move it away") from None
    was, said = lowest.settings.get("base_model_name_or_path"), (adapter.trained_on or [None])[0]
    kept = cache_folder() / "base" / str(said)
    places = [moved_to] if moved_to is not None else [was, kept] if model.scratch is not None else [model.path, was]
    place = next((str(each) for each in places if each is not None and _is(str(each), said, model)), None)
    if place is None:
        raise UserError(
            f"{moved_to or model.path or kept} is not, or no longer, the base model of {run.path}: put that back where"
            " it was (tasft.export can take it from elsewhere: --base <its folder>)"
            + (" (the run's own command with resume=false trains one and the run afresh)" if model.scratch else "")
        )
    if model.scratch is not None:
        base = Base(model, load_tokenizer(place), folder=Path(place))
        if lowest.environment.get("base_weights", base.weights) != base.weights:
            raise UserError(f"{place} is no longer the base model of {run.path}, but a later one: train the run again")
    else:
        commit = lowest.settings.get("revision")  # of a model of the hub, which may have moved on
        base = Base(replace(model, path=place), load_tokenizer(place, commit or model.revision))
    for each in adapter.chain:
        if each.trained_on is not None and each.trained_on != base.identity:
            raise UserError(
                f"{each.folder} was trained on another model ({', '.join(map(str, each.trained_on))}) than what lies"
                f" below it by now ({', '.join(map(str, base.identity))}): put that back, or train again"
            )
        base = replace(base, adapters=(*base.adapters, each))
    base = replace(base, adapters=base.adapters[:-1])
    return base if base.folder or commit is None else replace(base, model=replace(base.model, revision=commit))


def _is(place: str, said: str | None, model: Model) -> bool:
    """Whether the model at `place` is the one with the first part of an identity, `said`, where that is known."""
    if model.scratch is None and not Path(place).expanduser().is_dir():
        return said in (None, place)
    if not (Path(place) / "config.json").is_file():
        return False
    return said is None or said == (Path(place).name if model.scratch is not None else model_fingerprint(place))


def _check_trained_on(adapter: Adapter, base: Base) -> None:
    """UserError where another model than `base` is what the adapter was trained on, as far as its folder says."""
    if adapter.trained_on is not None:
        fits, was = adapter.trained_on == base.identity, ", ".join(map(str, adapter.trained_on))
    elif base.adapters:
        return
    else:
        was = str(adapter.settings.get("base_model_name_or_path"))
        fits = was == base.model.path or (Path(was).name if base.folder else model_fingerprint(was)) == base.identity[0]
    if not fits:
        raise UserError(
            f"model.adapter={adapter.folder} was trained on another base model ({was}) than this one"
            f" ({', '.join(map(str, base.identity))}): give the model, and for one from scratch the data, of its run"
        )


def _plain_base(model: Model, texts: list[str] | None) -> Base:
    """The base model that `model` names, without an adapter."""
    if model.scratch is None:
        assert model.path is not None
        return Base(model, load_tokenizer(model.path, model.revision))
    assert texts is not None, "a model from scratch needs texts"
    described = json.dumps(
        [RECIPE, asdict(model.scratch), hashlib.sha256("\0".join(texts).encode()).hexdigest()], sort_keys=True
    )
    folder = cache_folder() / "base" / hashlib.sha256(described.encode()).hexdigest()[:16]
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(folder):
        if not (folder / "tokenizer.json").is_file():
            with _replacing(folder) as fresh:
                train_tokenizer(texts, model.scratch.vocab_size).save_pretrained(fresh)
    return Base(model, AutoTokenizer.from_pretrained(folder), texts, folder)


def _only_one(folder: Path) -> FileLock:
    """Waits while another run is making the same base model."""
    return FileLock(f"{folder}.lock")


class _replacing:
    """A fresh folder that takes the place of `folder` when all went well, in one move."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Path:
        self.fresh = Path(tempfile.mkdtemp(dir=self.folder.parent, prefix=".new-"))
        return self.fresh

    def __exit__(self, failed: object, *_: object) -> None:
        if failed:
            shutil.rmtree(self.fresh, ignore_errors=True)
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        os.replace(self.fresh, self.folder)
