"""A tiny base model in a folder."""

import pytest

from tasft.model.scratch import fresh_llama, train_tokenizer
from tasft.schema import Scratch

SHAPE = Scratch(
    vocab_size=300, hidden_size=16, intermediate_size=32, layers=2, heads=2, max_positions=64,
    epochs=1, batch_size=8, lr=1e-3,
)  # fmt: skip


@pytest.fixture(scope="session")
def shape():
    return SHAPE


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """The folder that save_pretrained wrote."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer(["Name a fruit.", "An apple is a fruit."], SHAPE.vocab_size)
    tokenizer.save_pretrained(folder)
    fresh_llama(SHAPE, tokenizer).save_pretrained(folder)
    return folder
