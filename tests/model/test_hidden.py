import shutil
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tasft.errors import UserError
from tasft.model.hidden import hidden_states, layer_count

VOCABULARY, WIDTH, LAYERS = 61, 16, 2


@dataclass(frozen=True)
class Row:
    input_ids: tuple[int, ...]
    prompt_length: int


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=LAYERS,
        num_attention_heads=2, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).requires_grad_(False)


def rows(count=23):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, 20, (count,), generator=generator).tolist()
    ids = [torch.randint(VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    return [Row(tuple(each), i % 3) for i, each in enumerate(ids)]  # a prompt may be empty: no BOS


PICKED = {
    "last": lambda states, row: states[-1],
    "mean": lambda states, row: states[max(row.prompt_length, 1) :].mean(0),
    "prompt": lambda states, row: states[max(row.prompt_length, 1) - 1],
}


@pytest.mark.parametrize("position", PICKED)
def test_every_layer_is_what_the_model_gives_for_the_row_alone(model, position):
    found = hidden_states(model, rows(), position, max_tokens=64)
    assert found.shape == (LAYERS + 1, 23, WIDTH)
    assert found.dtype == np.float32
    for i, row in enumerate(rows()):
        alone = model(input_ids=torch.tensor([row.input_ids]), output_hidden_states=True).hidden_states
        for layer, states in enumerate(alone):
            expected = PICKED[position](states[0], row).numpy()
            assert found[layer, i] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_by_hand(model):
    embedding = model.get_input_embeddings().weight.numpy()
    row = [Row((5, 7, 9, 11), 2)]
    for position, expected in (
        ("last", embedding[11]), ("prompt", embedding[7]), ("mean", (embedding[9] + embedding[11]) / 2),
    ):  # fmt: skip
        assert hidden_states(model, row, position, 8, [0])[0, 0] == pytest.approx(expected, abs=1e-6)
    last = torch.from_numpy(hidden_states(model, row, "last", 8, [LAYERS])[0, 0])
    logits = model(input_ids=torch.tensor([row[0].input_ids])).logits[0, -1]
    assert model.lm_head(last).numpy() == pytest.approx(
        logits.numpy(), abs=1e-5
    )  # the last layer is what the head reads


@pytest.mark.parametrize("position", PICKED)
def test_batches_and_padding_change_nothing(model, position):
    whole = hidden_states(model, rows(), position, max_tokens=10**6)
    for max_tokens in (1, 40, 100):
        assert hidden_states(model, rows(), position, max_tokens) == pytest.approx(whole, rel=1e-4, abs=1e-5)
    backwards = hidden_states(model, rows()[::-1], position, 40)
    assert backwards[:, ::-1] == pytest.approx(whole, rel=1e-4, abs=1e-5)


def test_no_batch_holds_more_tokens_than_asked(model, monkeypatch):
    seen = []
    forward = type(model.get_decoder()).forward

    def watched(self, *args, **kwargs):
        seen.append(kwargs["input_ids"].shape)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model.get_decoder()), "forward", watched)
    hidden_states(model, rows(), "last", 60)
    assert sum(shape[0] for shape in seen) == 23
    assert max(shape.numel() for shape in seen) <= 60
    assert len(seen) < 23


def test_only_the_layers_asked_for_and_in_that_order(model):
    whole = hidden_states(model, rows(), "mean", 64)
    assert hidden_states(model, rows(), "mean", 64, [2, 0]).tolist() == whole[[2, 0]].tolist()
    assert layer_count(model) == LAYERS
    with pytest.raises(UserError, match=r"no layer 3: this model has layers 0 \(its embeddings\) to 2"):
        hidden_states(model, rows(), "mean", 64, [3])


def test_what_is_large_lies_in_a_file(model, monkeypatch):
    large = hidden_states(model, rows(), "last", 64, in_memory=100)
    assert isinstance(large, np.memmap)
    assert large.tolist() == hidden_states(model, rows(), "last", 64).tolist()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(UserError, match=r"the hidden states of 3 layers take .* GB, more than there is in .*TMPDIR"):
        hidden_states(model, rows(), "last", 64, in_memory=100)


def test_what_overflows_is_said(model):
    torch.manual_seed(0)
    broken = LlamaForCausalLM(model.config)
    broken.model.layers[0].mlp.down_proj.weight.data.fill_(float("inf"))
    with pytest.raises(UserError, match=r"hidden states are not finite in torch\.float32: give another model\.dtype"):
        hidden_states(broken, rows(3), "last", 64)


def test_training_mode_is_left_as_it_was(model):
    model.train()
    hidden_states(model, rows(2), "last", 64)
    assert model.training
    model.eval()
