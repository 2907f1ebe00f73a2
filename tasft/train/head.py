"""A causal language model taken apart: hidden states here, head and embeddings there, so that logits are never held."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from tasft.errors import UserError
from tasft.loss.vocabulary import Head, TokenEmbedding

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # of the largest logit


@dataclass(frozen=True)
class SplitModel:
    """The backbone, and the head that would turn its hidden states into logits."""

    backbone: Any
    head: Head

    def hidden(self, input_ids: Tensor, position_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Last hidden states (M, L, D). `attention_mask` None: positions tell the examples of one row apart.

        use_cache=False is what makes transformers look at the positions: with a cache, or with a mask of ones, examples
        in one row would attend to each other without a warning.
        """
        out = self.backbone(
            input_ids=input_ids, position_ids=position_ids, attention_mask=attention_mask, use_cache=False
        )
        return out.last_hidden_state


def split(model: PreTrainedModel | PeftModel) -> SplitModel:
    """`model` in two. UserError where its logits are not a linear map of its last hidden state that tasft knows."""
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    backbone, output = causal.get_decoder(), causal.get_output_embeddings()
    if output is None or not hasattr(output, "weight"):
        raise UserError(f"{type(causal).__name__} has no output matrix: tasft needs a causal language model with one")
    config = causal.config
    scale = 1.0
    if getattr(config, "logits_scaling", None):  # Granite divides
        scale = 1 / config.logits_scaling
    elif getattr(config, "logit_scale", None):  # Cohere multiplies
        scale = config.logit_scale
    head = Head(output.weight, getattr(output, "bias", None), scale, getattr(config, "final_logit_softcapping", None))
    return SplitModel(backbone, head)


def token_embedding(model: PreTrainedModel | PeftModel, which: str) -> TokenEmbedding:
    """The unit-norm token embeddings that EMD measures distances in: the `input` or the `output` matrix, detached."""
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    layer = causal.get_input_embeddings() if which == "input" else causal.get_output_embeddings()
    return TokenEmbedding.from_weight(layer.weight.detach())


@torch.no_grad()
def check_head(model: PreTrainedModel | PeftModel, parts: SplitModel, packing: bool = False) -> None:
    """UserError where the head does not give the model's own logits: the model does more after its hidden states."""
    ids = torch.arange(8, device=model.device).remainder(parts.head.weight.shape[0])[None]  # (1, 8)
    positions = torch.arange(8, device=model.device)[None]
    training = model.training
    model.eval()
    own = model(input_ids=ids, use_cache=False).logits[0].float()
    ours = parts.head.logits(parts.hidden(ids, positions, None)[0]).float()
    twice = parts.hidden(ids.repeat(1, 2), positions.repeat(1, 2), None)[0, 8:] if packing else None
    model.train(training)
    tolerance = TOLERANCE.get(parts.head.weight.dtype, 1e-4)
    if _error(ours, own) > tolerance:
        raise UserError(
            f"the output head of {type(model).__name__} does not give the model's own logits"
            f" (off by {_error(ours, own):.1%}):"
            " this architecture does something after its last hidden state that tasft does not know"
        )
    if twice is not None and _error(parts.head.logits(twice).float(), own) > tolerance:
        raise UserError(
            "trainer.packing=true, but with this model and attention the examples of one row see each other:"
            " use trainer.packing=false"
        )


def _error(a: Tensor, b: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((a - b).abs().max() / b.abs().max())
