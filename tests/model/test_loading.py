"""Base models from folders and from the hub, and a sentence for whatever is missing."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasft.errors import UserError
from tasft.model.loading import check_model, load_base, load_tokenizer
from tasft.model.lora import with_lora
from tasft.schema import Lora


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of the model to break."""
    return shutil.copytree(saved, tmp_path / "copy")


def test_a_folder_is_loaded_whole_frozen_and_in_the_dtype_asked_for(saved):
    check_model(str(saved))
    tokenizer = load_tokenizer(str(saved))
    weights = load_file(saved / "model.safetensors")
    for dtype in ("float32", "bfloat16"):
        model = load_base(str(saved), dtype, attention="eager")
        assert not model.training and not any(p.requires_grad for p in model.parameters())
        loaded = model.state_dict()["model.embed_tokens.weight"]
        assert torch.equal(loaded, weights["model.embed_tokens.weight"].to(getattr(torch, dtype)))
        assert model.config._attn_implementation == "eager"
    assert len(tokenizer) == len(loaded)
    assert tokenizer("An apple")["input_ids"][0] == tokenizer.bos_token_id


def test_a_tilde_is_the_home_folder(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved.parent))
    assert load_base(f"~/{saved.name}").config.vocab_size == len(load_tokenizer(f"~/{saved.name}"))


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("config.json", r"has no config\.json: give the folder that save_pretrained wrote"),
        ("tokenizer.json", r"has no tokenizer \(tokenizer\.json or such\): save it there with save_pretrained"),
        ("*.safetensors", r"has no weights \(\*\.safetensors or such\): save them there with save_pretrained"),
    ],
)
def test_a_folder_that_lacks_something_is_named(copy, pattern, sentence):
    for file in copy.glob(pattern):
        file.unlink()
    for check in (check_model, load_tokenizer, load_base):
        with pytest.raises(UserError, match=rf"^model\.path=.*/copy {sentence}"):
            check(str(copy))


def test_a_place_that_is_no_folder_is_named(saved):
    with pytest.raises(UserError, match=r"model\.path=.*/config\.json is a file: give the folder that holds it"):
        check_model(str(saved / "config.json"))
    for path in (f"{saved}/no", "./models/no", "~/no", "models/llama/7b"):
        with pytest.raises(UserError, match=rf"^model\.path={path}: no such folder$"):
            check_model(path)
    check_model("meta-llama/Llama-2-7b-hf")  # may be on the hub


def test_damaged_files_are_one_sentence(copy):
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"^model\.path=.*/copy could not be loaded: "):
        load_base(str(copy))
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"^model\.path=.*/copy could not be loaded: "):
        load_tokenizer(str(copy))
    (copy / "config.json").write_text(json.dumps({"model_type": "no such model"}))
    with pytest.raises(UserError, match=r"^model\.path=.*/copy could not be loaded: "):
        load_base(str(copy))


def test_weights_that_are_not_there_are_not_made_up(copy):
    weights = load_file(copy / "model.safetensors")
    gone = [name for name in sorted(weights) if "layers.1.mlp" in name]
    save_file(
        {name: w for name, w in weights.items() if name not in gone}, copy / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UserError, match=r"lacks 3 of its weights, such as model\.layers\.1\.mlp\.down_proj\.weight"):
        load_base(str(copy))


def test_a_tokenizer_without_eos_is_refused(copy):
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "eos_token"}))
    with pytest.raises(UserError, match="has no EOS token, so a model could not learn to stop: set eos_token"):
        load_tokenizer(str(copy))


def test_a_model_without_access_says_how_to_go_on(refusing_hub):
    id, sentence = refusing_hub
    for load in (load_tokenizer, load_base):
        with pytest.raises(UserError, match=rf"^model\.path={id} .*{sentence}.* local folder: model\.path=<folder>$"):
            load(id)


def test_a_hub_that_does_not_answer_is_asked_once(hub_at, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waits before it tries again"))
    for load in (load_tokenizer, load_base):
        with pytest.raises(UserError, match=r"hub cannot be reached: .* local folder: model\.path=<folder>$"):
            load("some/model")


def test_a_model_of_the_hub_is_loaded_and_kept(server, hub_at, saved):
    """The hub's protocol as far as loading needs it."""
    files = {file.name: file.read_bytes() for file in saved.iterdir()}
    commit = {"X-Repo-Commit": "a" * 40}
    server.handler.files = {
        f"/some/model/resolve/{revision}/{name}": content
        for name, content in files.items()
        for revision in ("main", *commit.values())
    }
    server.handler.files["/api/models/some/model"] = json.dumps({"id": "some/model", "sha": "a" * 40}).encode()
    server.handler.found = commit
    server.handler.refusal = (404, commit | {"X-Error-Code": "EntryNotFound"})
    hub_at(server.address)
    model = load_base("some/model")
    assert len(load_tokenizer("some/model")) == model.config.vocab_size
    hub_at("http://127.0.0.1:9")
    again = load_base("some/model")  # from its cache
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    adapter = with_lora(again, Lora(), seed=0).peft_config["default"]
    assert (adapter.base_model_name_or_path, adapter.revision) == ("some/model", "a" * 40)
    load_base("some/model", revision=adapter.revision)
