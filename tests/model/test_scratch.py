"""A tokenizer and a model from nothing but texts and a seed."""

from dataclasses import replace

import pytest
import torch

from tasft.model.scratch import fresh_llama, train_tokenizer

TEXTS = ["Name a fruit.", "An apple is a fruit.", "Größe"] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300)


@pytest.mark.parametrize(
    "text",
    [
        "Name a fruit.",
        " two  spaces ",
        "a\nb\t\r\n",
        "Größe 你好 🍎 ² \u2028",
        "don't , stop .",
        "e\u0301 \x00 \x7f",
        "",
    ],
)
def test_every_text_comes_back(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_special_tokens_come_first_and_are_single(tokenizer):
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer("a</s>", add_special_tokens=False)["input_ids"][-1] == 2


def test_texts_and_size_decide_the_tokenizer(tokenizer):
    assert train_tokenizer(TEXTS, 300).get_vocab() == tokenizer.get_vocab()
    assert len(train_tokenizer([], 1000)) == 259  # 256 bytes and 3 special tokens
    assert len(train_tokenizer(TEXTS, 265)) == 265


def test_the_seed_decides_the_weights(shape, tokenizer):
    def weights(seed):
        torch.rand(3)
        model = fresh_llama(replace(shape, seed=seed), tokenizer)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_the_model_has_the_shape_asked_for(shape, tokenizer):
    model = fresh_llama(shape, tokenizer)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.shape == (len(tokenizer), 16)
    assert len(model.model.layers) == 2
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
