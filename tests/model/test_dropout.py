"""Dropout by example: the share that is dropped, its scale, and what the draws depend on."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from tasft.model.dropout import Draws, ExampleDropout, with_example_dropout


def dropped(spans, shape, layer=0, p=0.25):
    return ExampleDropout(p, layer, Draws(spans))(torch.ones(shape))


def test_a_quarter_is_dropped_and_the_rest_scaled():
    x = dropped([(0, 1000, 1)], (1, 1000, 50))
    assert set(x.unique().tolist()) == {0.0, torch.tensor(4 / 3).item()}
    assert abs(float((x == 0).float().mean()) - 0.25) < 0.01  # 50,000 draws: standard deviation 0.002


def test_draws_follow_the_example_to_another_row_and_place():
    padded = dropped([(0, 3, 7), (5, 4, 8)], (2, 5, 16))  # two rows of width 5
    packed = dropped([(0, 4, 8), (4, 3, 7)], (1, 7, 16))
    assert torch.equal(padded[0, :3], packed[0, 4:])
    assert torch.equal(padded[1, :4], packed[0, :4])
    assert not padded[0, 3:].any()


def test_examples_and_layers_draw_differently():
    one, other = dropped([(0, 9, 7)], (1, 9, 16)), dropped([(0, 9, 8)], (1, 9, 16))
    assert not torch.equal(one, other)
    assert not torch.equal(one, dropped([(0, 9, 7)], (1, 9, 16), layer=1))


def test_evaluation_drops_nothing():
    module = ExampleDropout(0.5, 0, Draws())
    x = torch.randn(2, 3, 4)
    assert torch.equal(module.eval()(x), x)


def test_every_adapter_of_a_model_gets_it_and_a_layer_of_its_own():
    shape = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2, num_key_value_heads=2))
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], lora_dropout=0.1))
    draws = with_example_dropout(adapted)
    found = [module for module in adapted.modules() if isinstance(module, ExampleDropout)]
    assert [module.layer for module in found] == [0, 1, 2, 3]
    assert {module.p for module in found} == {0.1}
    assert all(module.draws is draws for module in found)
    assert not [m for n, m in adapted.named_modules() if "lora_dropout" in n and isinstance(m, torch.nn.Dropout)]


def test_a_second_call_gives_the_same_draws():
    shape = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2, num_key_value_heads=2))
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], lora_dropout=0.1))
    assert with_example_dropout(adapted) is with_example_dropout(adapted)
