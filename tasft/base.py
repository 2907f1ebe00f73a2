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
from transformers import AutoTokenizer, PreTrainedModel

from tasft.errors import UserError
from tasft.model.adapter import Adapter
from tasft.model.loading import load_base, load_tokenizer, model_fingerprint
from tasft.model.lora import merged
from tasft.model.scratch import fresh_llama, train_tokenizer
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
