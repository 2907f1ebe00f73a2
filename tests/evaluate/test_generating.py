"""Batched answers are those of prompts asked one by one."""

import copy

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from tasft.data.tokenize import prompt_ids
from tasft.evaluate.generating import generate
from tasft.model.scratch import train_tokenizer
from tasft.prompt import prompt_format

PROMPTS = ["Name a fruit.", "Why?", "Sort these words for me, please: " + "pear, apple, " * 5, "Größe", "Who?", "Why?"]
NEW = 12


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(PROMPTS, 270)


@pytest.fixture
def model(tokenizer):
    """Random and wide awake: answers depend on the prompt and are not one token again and again."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.4, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def answers(model, tokenizer, prompts=PROMPTS, batch_size=4):
    return generate(model, tokenizer, prompts, prompt_format("short", tokenizer), NEW, batch_size)


@torch.no_grad()
def by_hand(model, tokenizer, prompt, stops):
    """Greedy decoding of one prompt, without padding, cache or generate()."""
    format = prompt_format("short", tokenizer)
    ids = prompt_ids(tokenizer, format.prompt(prompt), format)
    new = []
    for _ in range(NEW):
        token = int(model(torch.tensor([ids + new])).logits[0, -1].argmax())
        if token in stops:
            break
        new.append(token)
    return new


def text(tokenizer, tokens):
    return tokenizer.decode(tokens, skip_special_tokens=True).strip()


@pytest.mark.parametrize("batch_size", [1, 2, 4, 64])
def test_batches_change_no_answer_and_no_order(model, tokenizer, batch_size):
    want = [text(tokenizer, by_hand(model, tokenizer, prompt, {tokenizer.eos_token_id})) for prompt in PROMPTS]
    assert len(set(want)) == 5  # one prompt stands there twice
    assert answers(model, tokenizer, batch_size=batch_size) == want


def test_an_answer_ends_at_the_first_stop(model, tokenizer):
    # The third token that the first prompt gets is declared a second stop, and padding, too.
    third = by_hand(model, tokenizer, PROMPTS[0], {tokenizer.eos_token_id})[2]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, third]
    stops = {tokenizer.eos_token_id, third}
    want = [by_hand(model, tokenizer, prompt, stops) for prompt in PROMPTS]
    assert len(want[0]) <= 2 and max(map(len, want)) == NEW
    assert answers(model, tokenizer) == [text(tokenizer, tokens) for tokens in want]


def test_padding_may_be_eos_or_missing(model, tokenizer):
    third = by_hand(model, tokenizer, PROMPTS[0], {tokenizer.eos_token_id})[2]
    word = tokenizer.convert_ids_to_tokens(third)
    other = copy.deepcopy(tokenizer)
    other.eos_token = word
    model.generation_config.eos_token_id = None
    want = [text(tokenizer, by_hand(model, tokenizer, prompt, {third})) for prompt in PROMPTS]
    for pad in (word, None):
        other.pad_token = pad
        assert answers(model, other) == want


def test_decoding_is_greedy_whatever_the_model_brings(model, tokenizer):
    want = answers(model, tokenizer)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=5.0, top_p=0.9, repetition_penalty=5.0, eos_token_id=tokenizer.eos_token_id
    )
    assert answers(model, tokenizer) == want


def test_the_model_is_left_as_it_was(model, tokenizer):
    want = answers(model, tokenizer)
    model.train()
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    assert answers(model, tokenizer) == want
    assert model.training
    assert answers(model.eval(), tokenizer, []) == []
    assert not model.training
