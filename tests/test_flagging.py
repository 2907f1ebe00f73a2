"""Flagging under a random model whose embeddings know harmful tokens."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tasft.base import Base
from tasft.data.tokenize import Tokenized
from tasft.errors import UserError
from tasft.flagging import flag
from tasft.model.scratch import train_tokenizer
from tasft.schema import Model, Saft

CPU = torch.device("cpu")
SAFT = Saft(layer=0, position="mean", k=None, quantile=0.1, threshold=None, svd="randomized", harmful_shares=[])
HARMFUL = range(0, 40, 10)  # every tenth row


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of which tokens from 100 on lie far from the others."""
    folder = tmp_path_factory.mktemp("model")
    train_tokenizer(["a b c"], 270).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=270, **shape))
    model.get_input_embeddings().weight.data[100:, 3] += 1
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def base(folder, tmp_path, monkeypatch):
    """The base model; `loads` on its class counts how often the weights are loaded."""
    monkeypatch.setenv("TASFT_CACHE", str(tmp_path))
    monkeypatch.setattr(Base, "loads", 0, raising=False)
    load = Base.load

    def counted(self, device):
        Base.loads += 1
        return load(self, device)

    monkeypatch.setattr(Base, "load", counted)
    model = Model("planted", str(folder), dtype="float32")
    from transformers import AutoTokenizer

    return Base(model, AutoTokenizer.from_pretrained(folder))


def row(number, harmful):
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(10, 100, (9,), generator=generator) + (100 if harmful else 0)
    return Tokenized(tuple(ids.tolist()), 3, False)


def mixture():
    return [row(i, i in HARMFUL) for i in range(40)]


def known():
    return [row(i, False) for i in range(100, 105)], [row(i, True) for i in range(200, 205)]


def test_the_planted_rows_are_flagged(base):
    found = flag(SAFT, base, mixture(), None, CPU)
    assert np.flatnonzero(found.flagged).tolist() == list(HARMFUL)
    assert (found.layer, found.k) == (0, 1)
    assert found.threshold == found.scores[list(HARMFUL)].min()
    assert found.why.startswith("4 of 40 rows flagged by saft.quantile=0.1; position mean, layer 0 of 2, k = 1, high")


def test_a_labelled_set_decides_without_a_quantile(base):
    found = flag(replace(SAFT, layer=None, quantile=None), base, mixture(), known(), CPU)
    assert np.flatnonzero(found.flagged).tolist() == list(HARMFUL)
    assert "AUROC 1.000 on the labelled rows" in found.why
    with_quantile = flag(replace(SAFT, layer=None, quantile=0.05), base, mixture(), known(), CPU)
    assert with_quantile.flagged.sum() == 2
    assert with_quantile.scores.tolist() == found.scores.tolist()


def test_a_threshold_and_the_middle_layer(base):
    scores = flag(replace(SAFT, layer=None), base, mixture(), None, CPU)
    assert scores.layer == 1
    threshold = float(np.sort(scores.scores)[-7])
    found = flag(replace(SAFT, layer=None, quantile=None, threshold=threshold), base, mixture(), None, CPU)
    assert found.flagged.sum() == 7
    assert found.threshold == pytest.approx(threshold)
    none = flag(replace(SAFT, quantile=None, threshold=1e9), base, mixture(), None, CPU)
    assert (none.flagged.sum(), none.threshold) == (0, float("inf"))


def test_what_is_known_is_not_computed_again(base):
    first = flag(SAFT, base, mixture(), None, CPU)
    again = flag(SAFT, base, mixture(), None, CPU, max_tokens=7)
    assert Base.loads == 1
    assert again.scores.tolist() == first.scores.tolist()
    assert again.flagged.tolist() == first.flagged.tolist()
    assert (again.layer, again.k, again.threshold, again.why) == (first.layer, first.k, first.threshold, first.why)
    others = [
        (replace(SAFT, position="last", layer=1), mixture(), None),
        (replace(SAFT, k=2), mixture(), None),
        (SAFT, mixture()[::-1], None),
        (SAFT, mixture(), known()),
        (SAFT, mixture(), known()[::-1]),
    ]
    for number, (saft, tokens, labelled) in enumerate(others, 2):
        flag(saft, base, tokens, labelled, CPU)
        assert Base.loads == number
    flag(replace(SAFT, harmful_shares=[0.1]), base, mixture(), None, CPU)  # of the report alone
    assert Base.loads == len(others) + 1


def test_a_damaged_file_is_made_again(base, tmp_path):
    first = flag(SAFT, base, mixture(), None, CPU)
    (file,) = (tmp_path / "saft").glob("*.npz")
    for content in (b"", file.read_bytes()[:-100], b"no zip at all"):
        file.write_bytes(content)
        assert flag(SAFT, base, mixture(), None, CPU).scores.tolist() == first.scores.tolist()
    assert Base.loads == 4


MISTAKES = {
    r"saft\.layer=3, but this model has layers 0 \(its embeddings\) to 2": ({"layer": 3}, mixture, None),
    r"saft\.k=9, but no more than 8 directions": ({"k": 9}, mixture, None),
    r"nothing says which rows to flag: give saft\.quantile": ({"quantile": None}, mixture, None),
    r"at least 2 rows to compare, and there are 1": ({}, lambda: mixture()[:1], None),
    r"saft\.labelled\.safe holds no usable row: both kinds are needed": ({}, mixture, lambda: ([], known()[1])),
    r"saft\.labelled\.harmful holds no usable row": ({}, mixture, lambda: (known()[0], [])),
    r"are the same there: give another saft\.layer": ({}, lambda: [row(1, False)] * 5, None),
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_mistakes(sentence, base):
    settings, tokens, labelled = MISTAKES[sentence]
    with pytest.raises(UserError, match=sentence):
        flag(replace(SAFT, **settings), base, tokens(), labelled and labelled(), CPU)


def test_rows_that_lack_their_end_are_refused(base):
    with pytest.raises(AssertionError, match="rows to imitate"):
        flag(SAFT, base, [*mixture(), replace(row(1, True), toxic=True)], None, CPU)
