"""Tokenizer and weights of a base model, from a local folder or the Hugging Face hub."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from tasft import hub
from tasft.errors import Unavailable, UserError

Loaded = TypeVar("Loaded")

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "spiece.model")
WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json")


def check_model(path: str) -> None:
    """UserError where `path` is a local folder without config, tokenizer or weights, or names nothing at all."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"model.path={path} has no config.json: give the folder that save_pretrained wrote")
        if not any((folder / name).is_file() for name in TOKENIZER_FILES):
            raise UserError(
                f"model.path={path} has no tokenizer (tokenizer.json or such): save it there with save_pretrained"
            )
        if not any(any(folder.glob(pattern)) for pattern in WEIGHT_PATTERNS):
            raise UserError(
                f"model.path={path} has no weights (*.safetensors or such): save them there with save_pretrained"
            )
    elif folder.exists():
        raise UserError(f"model.path={path} is a file: give the folder that holds it")
    elif path.startswith(("/", "./", "../", "~")) or path.count("/") > 1:
        raise UserError(f"model.path={path}: no such folder")


def model_fingerprint(path: str) -> str:
    """What decides the weights: a hub id as it is; of a folder its config and both ends of each weight file."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return path
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted({file for pattern in WEIGHT_PATTERNS for file in folder.glob(pattern)}):
        with file.open("rb") as content:
            digest.update(content.read(2**20))
            content.seek(max(file.stat().st_size - 2**20, 0))
            digest.update(content.read())
        digest.update(str(file.stat().st_size).encode())
    return digest.hexdigest()[:16]


def load_tokenizer(path: str, revision: str | None = None) -> Any:
    """The tokenizer that belongs to the model; UserError where there is none or no access."""
    check_model(path)
    tokenizer = _or_sentence(path, lambda place: AutoTokenizer.from_pretrained(place, revision=revision))
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"the tokenizer of {path} cannot tell which characters a token spans: save a tokenizer.json beside it"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {path} has no EOS token, so a model could not learn to stop: set eos_token")
    return tokenizer


def load_base(
    path: str, dtype: str = "float32", revision: str | None = None, attention: str | None = None
) -> PreTrainedModel:
    """The causal language model, frozen, in evaluation mode; UserError where it cannot be had whole."""
    check_model(path)
    model, info = _or_sentence(
        path,
        lambda place: AutoModelForCausalLM.from_pretrained(
            place,
            revision=revision,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            output_loading_info=True,
        ),
    )
    model.config._commit_hash = hub.commit(path, revision)
    return _whole(path, model, info)


def regressor_tokenizer(path: str, revision: str | None = None) -> Any:
    """The tokenizer of a sequence classifier with one output; UserError where the model is none, or cannot be had."""
    check_model(path)
    outputs = _or_sentence(path, lambda place: AutoConfig.from_pretrained(place, revision=revision)).num_labels
    if outputs != 1:
        raise UserError(f"model.path={path} is no model with one output, a score, but with {outputs}: give a regressor")
    tokenizer = _or_sentence(path, lambda place: AutoTokenizer.from_pretrained(place, revision=revision))
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"the tokenizer of {path} cannot tell which characters a token spans: save a tokenizer.json beside it"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_regressor(path: str, tokenizer: Any, dtype: str = "float32", revision: str | None = None) -> PreTrainedModel:
    """The sequence classifier that `tokenizer` belongs to, frozen, in evaluation mode; UserError as `load_base`."""
    model, info = _or_sentence(
        path,
        lambda place: AutoModelForSequenceClassification.from_pretrained(
            place, revision=revision, dtype=getattr(torch, dtype), output_loading_info=True
        ),
    )
    if model.config.pad_token_id is None:  # decoders look for the last token that is no padding
        model.config.pad_token_id = tokenizer.pad_token_id
    return _whole(path, model, info)


def _whole(path: str, model: PreTrainedModel, info: dict[str, Any]) -> PreTrainedModel:
    """The model, frozen, in evaluation mode; UserError where the checkpoint lacks weights."""
    if info["missing_keys"]:  # these would be random
        missing = sorted(info["missing_keys"])
        raise UserError(
            f"model.path={path} lacks {len(missing)} of its weights, such as {missing[0]}: save the whole model"
        )
    return model.requires_grad_(False).eval()


def _or_sentence(path: str, load: Callable[[str], Loaded]) -> Loaded:
    """What `load` returns, given the place to load from; whatever Hugging Face raises, as one sentence."""
    folder = Path(path).expanduser()
    try:
        if folder.is_dir():
            return load(str(folder.absolute()))  # an adapter's config is to name it for any working directory
        hub.probe()
        return load(path)
    except Exception as error:  # of many kinds, for network, access, names and files
        if folder.is_dir():
            raise UserError(f"model.path={path} could not be loaded: {hub.first_line(error)}") from None
        raise Unavailable(
            f"model.path={path} could not be loaded ({hub.why(error)}), or give a local folder: model.path=<folder>"
        ) from None
