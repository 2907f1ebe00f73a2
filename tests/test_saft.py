"""The report on detection, on a small model whose embeddings know harmful letters; and the experiment's config."""

import json
import sys

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from transformers import LlamaConfig, LlamaForCausalLM

from tasft.config import CONF, checked, entry, register
from tasft.filter.histogram import Panel, draw_histograms
from tasft.model.scratch import train_tokenizer
from tasft.saft import saft

ALL = [
    "model=hf", "model.path=model", "model.dtype=float32", "data=local", "data.safe.path=safe.jsonl",
    "data.safe.count=18", "data.harmful_source.path=harmful.jsonl", "data.harmful=2", "trainer=cpu",
    "data.format=short", "benchmark=[]", "saft.position=mean", "saft.layer=0", "saft.harmful_shares=[0.1,0.3]",
]  # fmt: skip
LABELLED = [
    f"saft.labelled.{kind}={{path: {kind}_known.jsonl, fields: {{prompt: prompt, response: response}}}}"
    for kind in ("safe", "harmful")
]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with rows and a model of which the letter X lies far from all else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TASFT_CACHE", str(tmp_path / "cache"))
    for name, count, letter in (
        ("safe", 19, "y"),
        ("safe_known", 4, "y"),
        ("harmful", 7, "X"),
        ("harmful_known", 4, "X"),
    ):
        rows = [{"prompt": f"{name} {i}?", "response": f"{letter * 6} {i}."} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = train_tokenizer(["It is 1."], 270)
    tokenizer.save_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))
    model.get_input_embeddings().weight.data[tokenizer.convert_tokens_to_ids("X"), 3] += 9
    model.save_pretrained(tmp_path / "model")
    return tmp_path


def report(monkeypatch, *overrides):
    monkeypatch.setattr(sys, "argv", ["tasft.saft", *ALL, *overrides])
    return entry(saft, "saft")


def test_report(project, monkeypatch, capfd):
    assert report(monkeypatch, *LABELLED) == 0
    printed = capfd.readouterr().out
    folder = project / "outputs" / "detection" / "model-local-mean"
    found = pd.read_csv(folder / "detection.csv")
    assert found[["harmful_share", "harmful", "settings", "flagged_by", "flagged"]].values.tolist() == [
        [share, harmful, settings, by, harmful]
        for share, harmful in ((0.1, 2), (0.3, 6))
        for settings, by in (
            ("unsupervised", "the true share"),
            ("labelled", "a threshold"),
            ("labelled", "the true share"),
        )
    ]
    assert (found[["auroc", "precision", "recall", "f1"]] == 1).all(axis=None)
    assert found.auroc_on_labelled.tolist() == pytest.approx([float("nan"), 1, 1] * 2, nan_ok=True)
    layers = pd.read_csv(folder / "layers.csv")
    assert layers.layer.tolist() == [0, 1, 2]
    assert layers["k = 1"][0] == 1
    assert layers["k = 10"].isna().all()  # the model has 8 dimensions
    table = (folder / "table.md").read_text()
    assert "20 rows, position mean" in table and "10% harmful rows" in table
    assert "20 rows, position mean" in printed
    assert (folder / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_report_without_labelled_rows_repeats(project, monkeypatch):
    assert report(monkeypatch) == 0
    folder = project / "outputs" / "detection" / "model-local-mean"
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert set(pd.read_csv(folder / "detection.csv").settings) == {"unsupervised"}
    assert report(monkeypatch, "trainer.max_tokens=64") == 0
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == files


MISTAKES = {
    "saft.harmful_shares=[0.01]": "a share of 0.01 of 20 rows is 0: raise data.safe.count, or drop this share",
    "saft.harmful_shares=[]": "saft.harmful_shares is empty",
    "saft.harmful_shares=[0.1,1.5]": "it should be less than 1",
    "saft.harmful_shares=[0.5]": "data.harmful=10, but harmful.jsonl has only 7 usable rows",
    "saft.layer=5": "saft.layer=5, but this model has layers 0 (its embeddings) to 2",
    "saft.k=50": "saft.k=50, but no more than",
    "saft.position=first": "should be one of last, mean, prompt",
    "loss=emd": "detection trains nothing, so loss=emd means nothing to it",
    "data.harmful_source.path=nowhere.jsonl": "data.harmful_source.path=nowhere.jsonl: no such file",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_mistakes(override, project, monkeypatch, capfd):
    more = ["loss.weight=1", "data.toxic=1", "data.toxic_source.path=harmful.jsonl"] if override == "loss=emd" else []
    assert report(monkeypatch, override, *more) == 1
    said = capfd.readouterr().err
    assert MISTAKES[override] in said
    assert "Traceback" not in said
    assert not (project / "outputs").exists()


def test_a_panel_of_nothing_flagged_is_drawn(tmp_path):
    import numpy as np

    panel = Panel("none", np.array([0.0, 1, 2, 3]), np.array([True, False, False, True]), float("inf"), False)
    draw_histograms([("a", [panel, panel]), ("b", [panel])], tmp_path / "scores.png")
    assert (tmp_path / "scores.png").stat().st_size > 1000


FOUR = [
    ["data.harmful=0"],
    [],
    ["data.filter=saft"],
    ["data.filter=saft_to_toxic", "loss=emd", "data.toxic=50"],
]


@pytest.mark.parametrize("overrides", FOUR, ids=" ".join)
def test_the_four_trainings_of_the_experiment_are_one_liners(overrides):
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("run", overrides=["experiment=saft", *overrides])
    config = checked(cfg)
    assert config.data.safe.count == 900
    assert config.experiment == "saft"


def test_no_labelled_harmful_prompt_of_the_experiment_is_in_its_mixtures():
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("saft", overrides=["experiment=saft", "data.harmful_source.rows.seed=3"])
    known, mixed = (
        {row["prompt"] for row in instantiate(source.rows)}
        for source in (cfg.saft.labelled.harmful, cfg.data.harmful_source)
    )
    assert (len(known), len(mixed)) == (20, 500)
    assert not known & mixed
