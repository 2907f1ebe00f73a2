"""Adapters merged into their base, and how far its logits are from those of base and adapters side by side."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tasft.errors import UserError
from tasft.model.adapter import Adapter
from tasft.model.lora import untie
from tasft.progress import Progress

Logits = list[torch.Tensor]  # for each sequence (T, V) float32


@dataclass(frozen=True)
class Deviation:
    """Of a model's logits from others."""

    error: float  # the largest difference, in proportion to the largest of the others; NaN where any logit is
    agreement: float  # share of the tokens after which both hold the same next one for the likeliest


def stacked(base: PreTrainedModel, adapters: Sequence[Adapter]) -> PeftModel:
    """`base` with all adapters beside its weights, all of them active; UserError where one does not fit."""
    model: Any = None
    for i, adapter in enumerate(adapters):
        try:
            if model is None:
                model = PeftModel.from_pretrained(base, str(adapter.folder), adapter_name="0")
            else:
                model.load_adapter(str(adapter.folder), adapter_name=str(i))
        except (RuntimeError, ValueError) as error:  # other shapes; no such layer
            why = str(error).strip().splitlines()[-1].strip()
            raise UserError(f"{adapter.folder} does not fit its base model: {why}") from None
    model.base_model.set_adapter([str(i) for i in range(len(adapters))])
    return model.requires_grad_(False).eval()


def merged_whole(model: PeftModel) -> PreTrainedModel:
    """The model with what `stacked` has put beside its weights added to them; it needs no PEFT any more."""
    untie(model.get_base_model())
    try:
        whole = model.merge_and_unload(safe_merge=True, adapter_names=list(model.base_model.active_adapters))
    except ValueError as error:  # NaN
        raise UserError(f"the adapter cannot be merged: {str(error).splitlines()[0]}") from None
    return whole.requires_grad_(False).eval()


@torch.no_grad()
def logits_of(model: Any, sequences: Sequence[Sequence[int]], bar: Progress) -> Logits:
    """The logits at every token of each sequence; `bar` counts the sequences."""
    return list(_each(model, sequences, bar))


@torch.no_grad()
def deviation(model: Any, sequences: Sequence[Sequence[int]], reference: Logits, bar: Progress) -> Deviation:
    """How far the logits of `model` are from `reference`, those of another model at the same tokens."""
    errors, same = [], []
    for logits, other in zip(_each(model, sequences, bar), reference, strict=True):
        errors.append((logits - other).abs().max())  # NaN stays NaN
        same.append(logits.argmax(-1) == other.argmax(-1))
    largest = max(each.abs().max() for each in reference)
    return Deviation(float(torch.stack(errors).max() / largest), float(torch.cat(same).float().mean()))


def _each(model: Any, sequences: Sequence[Sequence[int]], bar: Progress) -> Iterator[torch.Tensor]:
    """The float32 logits of one sequence after the other: no padding, so no mask, has a part in them."""
    for ids in sequences:
        yield model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].float()
        bar.advance()


def parameter_count(place: str, revision: str | None) -> int:
    """Number of the model's weights, by its config alone."""
    config = AutoConfig.from_pretrained(place, revision=revision)
    with torch.device("meta"):
        return sum(each.numel() for each in AutoModelForCausalLM.from_config(config).parameters())
