"""A low-rank adapter on a frozen base model."""

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from tasft.errors import UserError
from tasft.schema import Lora


def with_lora(model: PreTrainedModel, lora: Lora, seed: int) -> PeftModel:
    """`model` with a fresh adapter: its start is a function of `seed`, its output that of the base.

    UserError where no layer matches. The adapter's weights are float32 whatever the base's dtype.
    """
    names = [name.rsplit(".", 1)[-1] for name, _ in model.named_modules()]
    missing = [target for target in lora.targets if target not in names]
    if missing:
        linear = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
        raise UserError(
            f"model.lora.targets: this model has no layer {missing[0]}; its linear layers are {', '.join(linear)}"
        )
    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)
