"""Adapters: where they go, how they start, and what stays frozen."""

import pytest
import torch
from peft.tuners.lora import LoraLayer

from tasft.errors import UserError
from tasft.model.loading import load_base
from tasft.model.lora import with_lora
from tasft.schema import Lora

IDS = torch.arange(9)[None]


def adapter(model):
    return {name: p for name, p in model.named_parameters() if "lora_" in name}


def test_only_the_adapter_is_trained_and_it_starts_as_nothing(saved):
    base = load_base(str(saved))
    with torch.no_grad():
        want = base(IDS).logits
        model = with_lora(base, Lora(r=4, dropout=0.5), seed=0).eval()
        torch.testing.assert_close(model(IDS).logits, want, rtol=0, atol=0)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == list(adapter(model))
    # q_proj and v_proj of 2 layers, each a pair of 16 x 4 matrices
    assert len(trained) == 8 and all(p.numel() == 64 for p in adapter(model).values())


def test_the_start_is_the_seeds(saved):
    def start(seed):
        torch.rand(3)  # what was drawn before does not matter
        return torch.cat([p.flatten() for p in adapter(with_lora(load_base(str(saved)), Lora(), seed)).values()])

    assert torch.equal(start(0), start(0))
    assert not torch.equal(start(0), start(1))


def test_a_bfloat16_model_gets_a_float32_adapter(saved):
    model = with_lora(load_base(str(saved), "bfloat16"), Lora(), seed=0)
    assert {p.dtype for p in adapter(model).values()} == {torch.float32}
    assert model.get_base_model().model.embed_tokens.weight.dtype == torch.bfloat16


def test_the_adapter_is_scaled_by_alpha_over_r(saved):
    model = with_lora(load_base(str(saved)), Lora(r=4, alpha=12, targets=["o_proj"]), seed=0)
    assert {m.scaling["default"] for m in model.modules() if isinstance(m, LoraLayer)} == {3.0}
    assert all("o_proj" in name for name in adapter(model))


def test_a_layer_that_is_not_there_lists_those_that_are(saved):
    sentence = r"^model\.lora\.targets: this model has no layer query; its linear layers are down_proj, .*, q_proj, "
    with pytest.raises(UserError, match=sentence):
        with_lora(load_base(str(saved)), Lora(targets=["q_proj", "query"]), seed=0)
