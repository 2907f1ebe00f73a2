"""A low-rank adapter on a frozen base model."""

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from tasft.errors import UserError
from tasft.model.adapter import Adapter
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
        revision=getattr(model.config, "_commit_hash", None),  # of a model of the hub, which may move on
    )
    return get_peft_model(model, config)


def merged(model: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    """`model` with `adapter` added to its weights for good, frozen, in evaluation mode.

    Each sum is taken in float32 and rounded to the weight's own dtype. UserError where the adapter does not fit. An
    adapter that is trained on it names in its adapter_config.json no base that could be loaded by mistake.
    """
    try:
        adapted = PeftModel.from_pretrained(model, str(adapter.folder))
    except (RuntimeError, ValueError) as error:  # other shapes; no such layer
        why = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"model.adapter={adapter.folder} does not fit this model: {why}") from None
    untie(model)
    for layer in adapted.modules():
        if isinstance(layer, BaseTunerLayer):
            weights = layer.get_base_layer()
            dtype = weights.weight.dtype
            weights.float()
            layer.merge()
            weights.to(dtype)
    whole = adapted.unload()
    whole.name_or_path = f"{model.name_or_path} with {adapter.folder} merged in"
    return whole.requires_grad_(False).eval()


def untie(model: PreTrainedModel) -> None:
    """Make two of an input and an output embedding that are one matrix, where an adapter lies on one of them.

    Merged into that matrix it would change both.
    """
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    if None in layers or not any(isinstance(each, BaseTunerLayer) for each in layers):
        return
    inputs, outputs = (each.get_base_layer() if isinstance(each, BaseTunerLayer) else each for each in layers)
    if inputs.weight.data_ptr() == outputs.weight.data_ptr():
        outputs.weight = torch.nn.Parameter(outputs.weight.detach().clone())
        model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = False
