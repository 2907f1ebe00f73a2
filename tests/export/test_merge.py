"""Merging: weights by hand, models of several builds, and what a comparison sees."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PhiConfig, Qwen2Config

from tasft.errors import UserError
from tasft.export.merge import deviation, logits_of, merged_whole, parameter_count, stacked
from tasft.model.adapter import Adapter
from tasft.model.loading import load_base
from tasft.model.lora import with_lora
from tasft.model.scratch import train_tokenizer
from tasft.progress import Progress, quiet
from tasft.schema import Lora

SEQUENCES = [[1, 5, 7, 9, 20, 3], [2, 250, 17]]
SMALL = {
    "vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
GPT2 = GPT2Config(vocab_size=300, n_embd=16, n_layer=2, n_head=2)
TIED = LlamaConfig(**SMALL, tie_word_embeddings=True)
CASES = {
    "tied": (TIED, ["q_proj", "v_proj"]),
    "tied with another head": (TIED, ["q_proj", "lm_head"]),
    "tied with other embeddings": (TIED, ["q_proj", "embed_tokens"]),
    "bias on some": (Qwen2Config(**SMALL, num_key_value_heads=1), ["q_proj", "v_proj"]),
    "bias everywhere": (PhiConfig(**SMALL), ["q_proj", "dense"]),
    "transposed": (GPT2, ["c_attn", "c_proj"]),
}


@pytest.fixture
def bar():
    with quiet(), Progress(1, "comparing", "prompt") as made:
        yield made


def saved(config, folder):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    train_tokenizer(["a fruit"], 300).save_pretrained(folder)
    return str(folder)


def trained(base, folder, targets, r=4, seed=0, scale=0.3):
    model = with_lora(load_base(base), Lora(r=r, targets=targets), seed)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "lora_embedding" in name:
            parameter.data.normal_(0, scale)
    model.save_pretrained(str(folder))
    return Adapter(folder)


@pytest.mark.parametrize("case", CASES)
def test_every_build_survives_merging_saving_and_loading(case, tmp_path, bar):
    config, targets = CASES[case]
    base = saved(config, tmp_path / "base")
    model = stacked(load_base(base), [trained(base, tmp_path / "a", targets)])
    reference = logits_of(model, SEQUENCES, bar)
    with model.disable_adapter():
        assert deviation(model, SEQUENCES, reference, bar).error > 0.1
    whole = merged_whole(model)
    assert deviation(whole, SEQUENCES, reference, bar).error < 2e-6
    whole.save_pretrained(tmp_path / "out")
    train_tokenizer(["a fruit"], 300).save_pretrained(tmp_path / "out")
    again = load_base(str(tmp_path / "out"))
    assert deviation(again, SEQUENCES, reference, bar).error < 2e-6
    assert again.config.tie_word_embeddings == (case in ("tied", "transposed"))
    assert not any("lora" in name for name in again.state_dict())


def test_weights_are_the_base_and_every_adapter_summed(tmp_path):
    base = saved(TIED, tmp_path / "base")
    adapters = [
        trained(base, tmp_path / "a", ["q_proj", "v_proj"], r=4),
        trained(base, tmp_path / "b", ["q_proj"], r=2, seed=1),
    ]
    plain = load_base(base).state_dict()
    whole = merged_whole(stacked(load_base(base), adapters)).state_dict()
    from safetensors.torch import load_file

    factors = [load_file(each.folder / "adapter_model.safetensors") for each in adapters]
    for name, weight in whole.items():
        want = plain[name].double()
        for of_adapter, r in zip(factors, (4, 2), strict=True):
            pair = [of_adapter.get(f"base_model.model.{name.removesuffix('weight')}lora_{x}.weight") for x in "BA"]
            if pair[0] is not None:
                want = want + 16 / r * pair[0].double() @ pair[1].double()
        torch.testing.assert_close(weight.double(), want, rtol=1e-6, atol=1e-7)
        assert torch.equal(weight, plain[name]) == ("q_proj" not in name and "v_proj" not in name), name


def test_a_deviation_is_seen_where_it_is_and_nan_is_none(tmp_path, bar):
    model = load_base(saved(TIED, tmp_path / "base"))
    reference = logits_of(model, SEQUENCES, bar)
    same = deviation(model, SEQUENCES, reference, bar)
    assert (same.error, same.agreement) == (0.0, 1.0)
    largest = max(float(each.abs().max()) for each in reference)
    reference[1] = reference[1].clone()
    reference[1][2, 250] = 3 * largest  # one logit of one token of nine
    found = deviation(model, SEQUENCES, reference, bar)
    own = float(logits_of(model, SEQUENCES, bar)[1][2, 250])
    assert found.error == pytest.approx((3 * largest - own) / (3 * largest))
    assert found.agreement == pytest.approx(8 / 9)
    model.model.norm.weight.data[0] = float("nan")
    assert not deviation(model, SEQUENCES, reference, bar).error <= 1e9


def test_an_adapter_that_does_not_fit_and_one_that_is_not_finite_say_so(tmp_path):
    base = saved(TIED, tmp_path / "base")
    other = saved(LlamaConfig(**SMALL | {"hidden_size": 32}), tmp_path / "other")
    adapter = trained(base, tmp_path / "a", ["q_proj"])
    with pytest.raises(UserError, match="does not fit its base model: size mismatch"):
        stacked(load_base(other), [adapter])
    with pytest.raises(UserError, match=r"^the adapter cannot be merged: NaNs detected"):
        merged_whole(stacked(load_base(base), [trained(base, tmp_path / "b", ["q_proj"], scale=float("inf"))]))


def test_the_size_is_known_before_the_weights_are_loaded(tmp_path):
    for config in (TIED, GPT2):
        base = saved(config, tmp_path / config.model_type)
        assert parameter_count(base, None) == load_base(base).num_parameters()
