"""Finished runs of a small model as models and adapters that need no tasft, loaded in a process that has none."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from transformers import AutoTokenizer

from tasft.config import CONF
from tasft.errors import UserError
from tasft.execute import execute
from tasft.export import main
from tasft.export.write import export
from tasft.model.loading import load_base
from tasft.prepare import prepare
from tasft.result.table import read_table
from tasft.train.pretrain import pretrain
from tests.small import ASKED, SMALL, composed, lay_out

EMD = [
    "loss=emd", "loss.weight=0.5", "data.toxic=3", "data.toxic_source.path=toxic.jsonl", "data.safe.licence=CC BY 4.0",
    "data.toxic_source.licence=MIT",
]  # fmt: skip
AGAIN = ["data.safe.count=0", "data.harmful=4", "batch_size=2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three finished runs: one, that one tuned again, and a plain one in bfloat16 that has asked nothing."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TASFT_CACHE", str(folder / "cache"))
        lay_out(folder)
        made = {"emd": prepare(composed("run", *EMD))}
        execute(made["emd"])
        made["again"] = prepare(composed("run", *AGAIN, f"model.adapter={made['emd'].folder.path}"))
        silent = composed("run", "model.dtype=bfloat16")
        silent.benchmark = {}
        made["silent"] = prepare(silent)
        for name in ("again", "silent"):
            execute(made[name])
        yield {name: run.folder for name, run in made.items()}


PLAIN = """
import json, sys
sys.modules["tasft"] = None  # importing it raises ImportError
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
given = json.load(sys.stdin)
said = {}
for name in ("emd", "again"):
    generate = pipeline("text-generation", given[name])
    chats = [generate([{"role": "user", "content": prompt}]) for prompt in given["prompts"]]
    said[name] = [chat[0]["generated_text"][-1]["content"].strip() for chat in chats]
model, tokenizer = generate.model, generate.tokenizer
ids = tokenizer("### Instruction:\\n" + given["prompts"][0] + "\\n\\n### Response:\\n", return_tensors="pt")
text = tokenizer.decode(model.generate(**ids)[0, ids.input_ids.shape[1]:], skip_special_tokens=True)
said["text"] = text.strip()
def answers(model, folder):
    tokenizer, found = AutoTokenizer.from_pretrained(folder), []
    for prompt in given["prompts"]:
        message = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=given["length"], do_sample=False)
        found.append(tokenizer.decode(out[0, ids.input_ids.shape[1]:], skip_special_tokens=True).strip())
    return found
said["adapter"] = answers(AutoPeftModelForCausalLM.from_pretrained(given["run"]), given["alone"])
base = AutoModelForCausalLM.from_pretrained(given["base"])
said["alone"] = answers(PeftModel.from_pretrained(base, given["alone"]).eval(), given["alone"])
json.dump(said, sys.stdout)
"""


def test_in_a_process_without_tasft_the_answers_are_the_runs(runs, tmp_path):
    for name in ("emd", "again"):
        export(runs[name].path, tmp_path / name)
    export(runs["emd"].path, tmp_path / "alone", adapter_only=True)
    given = {name: str(tmp_path / name) for name in ("emd", "again", "alone")}
    given |= {"prompts": [each["ask"] for each in ASKED], "length": 5}
    given |= {"run": str(runs["emd"].adapter.absolute()), "base": str(Path("model").absolute())}
    done = subprocess.run(
        [sys.executable, "-c", PLAIN],
        input=json.dumps(given), cwd="/", capture_output=True, text=True, check=True,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )  # fmt: skip
    said = json.loads(done.stdout)
    want = {}
    for name in ("emd", "again"):
        [(benchmark, step)] = runs[name].responses_present()
        want[name] = [row.response for row in runs[name].read_responses(benchmark, step)]
    assert said == {
        "emd": want["emd"], "again": want["again"], "text": want["again"][0],
        "adapter": want["emd"], "alone": want["emd"],
    }  # fmt: skip
    assert want["emd"] != want["again"]


def test_the_card_says_where_it_comes_from_and_what_it_scored(runs, tmp_path):
    export(runs["emd"].path, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["library_name"] == "transformers" and head["license"] == "other"
    assert "base_model" not in head  # a folder has no name on the hub
    row = next(row for row in read_table(runs["emd"].path).rows if (row.judge, row.metric) == ("joint", "harmful"))
    cell = f"{100 * row.value:.1f} [{100 * row.low:.1f} to {100 * row.high:.1f}]"
    assert f"| local | toxic | {row.n} | {row.unscored} | {cell} |" in text
    weight = json.loads(runs["emd"].environment.read_text())["weight"]
    assert f"| λ | 0.5 (share {weight['share']:.3g}): as given |" in text
    data = json.loads(runs["emd"].environment.read_text())["data"]
    assert f"| safe | 10 | imitated | safe.jsonl | CC BY 4.0 | `{data['safe']['sha256']}` |" in text
    assert f"| toxic | 3 | pushed away from | toxic.jsonl | MIT | `{data['toxic']['sha256']}` |" in text
    assert "| seed | 0 |" in text and "r 8, alpha 16, dropout 0.05, on q_proj, v_proj" in text
    assert "adamw" in text and "not guaranteed to be harmless" in text and "over-refusal" in text
    assert not any(each["ask"] in text or each["harmful"] in text for each in ASKED)


def test_the_card_of_a_model_that_was_tuned_again_says_what_lies_below(runs, tmp_path):
    export(runs["again"].path, tmp_path / "out", dtype="bfloat16", max_shard_size="8KB")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "It had been tuned before" in text and "emd_toxic3_" in text
    assert "It was trained to imitate 4 harmful rows" in text
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert load_base(str(tmp_path / "out"), "bfloat16").config.dtype == torch.bfloat16
    assert {oct(file.stat().st_mode) for file in (tmp_path / "out").iterdir()} == {"0o100644"}


def test_a_run_that_has_asked_nothing(runs, tmp_path):
    export(runs["silent"].path, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "None: nobody has judged its answers." in text and "sequences of random tokens" in text
    assert "rounded once to bfloat16" in text  # the run's own
    assert "Nothing in its training told it to refuse" in text
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    messages = [{"role": "user", "content": "a"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<s>### Instruction:\na\n\n### Response:\n"


def test_the_adapter_says_on_which_model_it_belongs(runs):
    for name, below in (("emd", None), ("again", str(runs["emd"].adapter.absolute()))):
        readme = (runs[name].adapter / "README.md").read_text()
        code = readme.split("```python\n")[1].split("```")[0]
        assert f'place = "{Path("model").absolute()}"' in code
        assert (below is not None) == ("merge_and_unload" in code) and (below or "") in code
        assert "### Instruction:\n{prompt}\n\n### Response:\n" in readme
    settings = json.loads((runs["emd"].adapter / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(Path("model").absolute())


def test_what_is_refused_leaves_nothing(runs, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"logits in float32 differ .* 1e-12 is allowed: nothing is written; give a la"):
        export(runs["emd"].path, out, tolerance=1e-12)
    assert not list(tmp_path.iterdir())
    (tmp_path / ".out.unfinished").mkdir()  # of an export that was killed
    (tmp_path / ".out.unfinished" / "junk").touch()
    out.mkdir()
    export(runs["emd"].path, out, adapter_only=True)
    assert [file.name for file in tmp_path.iterdir()] == ["out"] and not (out / "junk").exists()
    before = (out / "README.md").read_text()
    with pytest.raises(UserError, match="is not empty: give a new folder"):
        export(runs["emd"].path, out)
    assert (out / "README.md").read_text() == before


def test_mistakes(runs, tmp_path, capsys):
    run, out = runs["emd"].path, tmp_path / "out"
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shutil.copytree(runs["emd"].adapter, tmp_path / "adapter")
    shutil.copytree("model", tmp_path / "moved")
    (tmp_path / "other").mkdir()

    def refused(sentence, *arguments):
        assert main([*map(str, arguments), "--out", str(out)]) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("tasft: ") and sentence in said
        assert not out.exists()

    refused("no such folder", "nowhere")
    refused("is no run: there is no config.yaml", tmp_path / "adapter")
    refused("--dtype is of a merged model", run, "--adapter-only", "--dtype", "float32")
    refused("was trained on a tuned model", runs["again"].path, "--adapter-only")
    refused("no run has a judge of harm nobody: there are refusal", run, "--harm", "nobody")
    refused("is not, or no longer, the base model of", run, "--base", tmp_path / "other")
    (copy / "FINISHED").rename(copy / "not")
    refused("is not finished: give the run's own command again", copy)
    (copy / "not").rename(copy / "FINISHED")
    weights = copy / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    refused("adapter_model.safetensors is damaged", copy)
    weights.unlink()
    refused("holds no adapter", copy)
    for wrong in (["--tolerance", "0"], ["--tolerance", "nan"], ["--max-shard-size", "5"], ["--dtype", "int8"]):
        with pytest.raises(SystemExit):
            main([str(run), "--out", str(out), *wrong])
    assert main([str(run), "--out", str(out), "--base", str(tmp_path / "moved"), "--adapter-only"]) == 0
    settings = json.loads((out / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tmp_path / "moved")


def test_a_base_that_has_changed_or_gone_is_noticed(runs, tmp_path):
    weights = Path("model/model.safetensors")
    content = weights.read_bytes()
    try:
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(UserError, match=r"^model is not, or no longer, the base model of .* --base <its"):
            export(runs["emd"].path, tmp_path / "out")
        weights.unlink()
        with pytest.raises(UserError, match=r"^model is not, or no longer, the base model"):
            export(runs["again"].path, tmp_path / "out")
    finally:
        weights.write_bytes(content)
    below = runs["emd"].adapter / "adapter_config.json"
    kept = below.read_text()
    try:
        below.write_text(kept.replace('"lora_alpha": 16', '"lora_alpha": 17'))
        with pytest.raises(UserError, match=r"was trained on another model .* than what lies below it by now"):
            export(runs["again"].path, tmp_path / "out")
    finally:
        below.write_text(kept)


def test_a_model_trained_from_scratch(runs, tmp_path, monkeypatch):
    small = [each for each in SMALL if not each.startswith("model")]
    shape = "vocab_size: 300, hidden_size: 16, intermediate_size: 16, layers: 1, heads: 2, max_positions: 128"
    scratch = ["model=scratch", f"model.scratch={{{shape}, epochs: 1, batch_size: 4, lr: 0.01}}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run = prepare(compose("run", overrides=[*small, *scratch]))
    clock, spent = time.perf_counter, []

    def slowly(*args):
        spent.append(3600)
        return pretrain(*args)

    monkeypatch.setattr("tasft.base.pretrain", slowly)
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + sum(spent))
    execute(run)
    assert spent and run.folder.read_cost()["training_seconds"] < 3600  # the base is no cost of one of its runs
    base = run.base.folder
    monkeypatch.setenv("TASFT_CACHE", str(tmp_path / "elsewhere"))  # the adapter says where the base lies
    export(run.folder.path, tmp_path / "out")
    assert "trained from scratch" in (tmp_path / "out" / "README.md").read_text()
    file = base / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # as if it had been trained again on another machine
    with pytest.raises(UserError, match=r"is no longer the base model of .* but a later one: train the run again"):
        export(run.folder.path, tmp_path / "other")
    base.rename(base.with_name("gone"))
    with pytest.raises(UserError, match=r"is not, or no longer, the base model of .* resume=false"):
        export(run.folder.path, tmp_path / "other")


def test_a_model_of_the_hub_is_the_one_that_the_run_had(runs, tmp_path, server, hub_at):
    files = {file.name: file.read_bytes() for file in Path("model").iterdir()}
    files["README.md"] = b"---\nlicense: apache-2.0\n---\n"

    def serve(commit, files):
        server.handler.found = {"X-Repo-Commit": commit}
        server.handler.refusal = (404, {"X-Repo-Commit": commit, "X-Error-Code": "EntryNotFound"})
        server.handler.files = {f"/some/model/resolve/main/{name}": content for name, content in files.items()}
        server.handler.files |= {f"/some/model/resolve/{commit}/{name}": content for name, content in files.items()}
        server.handler.files["/api/models/some/model"] = json.dumps({"id": "some/model", "sha": commit}).encode()

    serve("a" * 40, files)
    hub_at(server.address)
    run = prepare(composed("run", "model.path=some/model"))
    execute(run)
    content = files["model.safetensors"]
    serve("b" * 40, files | {"model.safetensors": content[:-1] + bytes([content[-1] ^ 1])})
    export(run.folder.path, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert (head["base_model"], head["base_model_relation"], head["license"]) == ("some/model", "finetune", "other")
    assert f"`some/model` at revision `{'a' * 40}`" in text and "licence says apache-2.0" in text
    weight = "model.embed_tokens.weight"
    assert torch.equal(load_base(str(tmp_path / "out")).state_dict()[weight], load_base("model").state_dict()[weight])
