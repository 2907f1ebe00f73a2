"""Adapters on disk, and what is left of one that is merged in."""

import json
import shutil

import pytest
import torch
from peft import PeftModel

from tasft.errors import UserError
from tasft.model.adapter import Adapter
from tasft.model.loading import load_base
from tasft.model.lora import merged, with_lora
from tasft.result.origin import Origin, origin, tuned_name
from tasft.schema import Lora

IDS = torch.arange(20)[None]


def trained(saved, folder, seed=0, targets=("q_proj", "v_proj", "down_proj")):
    """An adapter in `folder` that does something."""
    model = with_lora(load_base(str(saved)), Lora(r=4, targets=list(targets)), seed)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "lora_embedding" in name:
            parameter.data.normal_(0, 0.3)
    model.save_pretrained(str(folder))
    return Adapter(folder)


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


def test_a_merged_model_says_what_base_and_adapter_say(saved, tmp_path):
    adapter = trained(saved, tmp_path / "a")
    base = load_base(str(saved))
    want = logits(PeftModel.from_pretrained(load_base(str(saved)), str(adapter.folder)))
    got = merged(load_base(str(saved)), adapter)
    torch.testing.assert_close(logits(got), want, rtol=1e-5, atol=1e-5)
    assert (want - logits(base)).abs().max() > 0.01
    assert type(got) is type(base)
    assert not any("lora" in name or p.requires_grad for name, p in got.named_parameters())
    fresh = with_lora(got, Lora(), seed=0)
    torch.testing.assert_close(logits(fresh), want, rtol=1e-5, atol=1e-5)
    assert "merged in" in fresh.peft_config["default"].base_model_name_or_path


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_of_tied_embeddings_only_the_one_with_the_adapter_changes(saved, tmp_path, target):
    base = load_base(str(saved))
    assert base.config.tie_word_embeddings
    adapter = trained(saved, tmp_path / "a", targets=[target])
    want = logits(PeftModel.from_pretrained(load_base(str(saved)), str(adapter.folder)))
    assert (want - logits(base)).abs().max() > 0.01
    torch.testing.assert_close(logits(merged(base, adapter)), want, rtol=1e-5, atol=1e-5)


def test_weights_are_summed_in_float32_and_rounded_once(saved, tmp_path):
    adapter = trained(saved, tmp_path / "a")
    got = dict(merged(load_base(str(saved), "bfloat16"), adapter).named_parameters())
    tuned = PeftModel.from_pretrained(load_base(str(saved), "bfloat16").float(), str(adapter.folder))
    want = dict(tuned.merge_and_unload().named_parameters())
    assert got.keys() == want.keys()
    for name, weight in want.items():
        assert got[name].dtype == torch.bfloat16
        assert torch.equal(got[name], weight.bfloat16()), name


def test_content_decides_the_digest_not_the_place(saved, tmp_path):
    adapter = trained(saved, tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "run" / "adapter")
    settings = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    moved = settings | {"base_model_name_or_path": "elsewhere"}
    (tmp_path / "run" / "adapter" / "adapter_config.json").write_text(json.dumps(moved))
    assert Adapter(tmp_path / "run").digest == adapter.digest
    assert trained(saved, tmp_path / "b", seed=1).digest != adapter.digest
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": 3}))
    assert Adapter(tmp_path / "a").digest != adapter.digest


def test_the_name_says_how_the_adapter_was_trained(saved, tmp_path):
    (tmp_path / "my run").mkdir()
    adapter = trained(saved, tmp_path / "my run" / "adapter")
    assert adapter.name == f"adapter_{adapter.digest}"
    data = {"toxic": 50, "safe_answers": 0, "contrastive": 7, "harmful": 0, "filter": None}
    (tmp_path / "my run" / "config.yaml").write_text(json.dumps({"loss": {"name": "emd"}, "data": data}))
    adapter = Adapter(tmp_path / "my run")
    assert adapter.name == f"emd_toxic50_contrastive7_{adapter.digest}"
    origins = origin(tuned_name("tiny-2", adapter.name))
    assert origins == Origin("tiny-2", "emd_toxic50_contrastive7", adapter.digest)


def test_what_is_no_adapter_says_so(saved, tmp_path):
    with pytest.raises(UserError, match=r"^model\.adapter=.*nowhere: no such folder$"):
        Adapter(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"^ask\.runs=.* holds no adapter: give the folder of a finished run"):
        Adapter(saved, "ask.runs")
    adapter = trained(saved, tmp_path / "a", targets=["q_proj"])
    file = tmp_path / "a" / "adapter_config.json"
    file.write_text(file.read_text().replace('"LORA"', '"IA3"'))
    with pytest.raises(UserError, match="of an adapter of the kind IA3: only LoRA's can be merged in"):
        Adapter(adapter.folder).digest  # noqa: B018
    file.write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        Adapter(adapter.folder).digest  # noqa: B018


def test_an_adapter_of_another_shape_does_not_fit(saved, tmp_path):
    adapter = trained(saved, tmp_path / "a", targets=["q_proj"])
    file = tmp_path / "a" / "adapter_config.json"
    file.write_text(file.read_text().replace('"r": 4', '"r": 8'))
    with pytest.raises(UserError, match="does not fit this model: size mismatch"):
        merged(load_base(str(saved)), Adapter(adapter.folder))
