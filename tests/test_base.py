"""A tuned model as the base of another run: real runs of a small model."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tasft.errors import UserError
from tasft.execute import execute, load_tuned
from tasft.prepare import prepare
from tests.small import composed, lay_out

IDS = torch.arange(30)[None]
CPU = torch.device("cpu")
AGAIN = ["data.safe.count=0", "data.harmful=4", "batch_size=2", "evaluate.at_start=true"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder in which a run has finished, has been tuned again, and that once more; the three runs."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TASFT_CACHE", str(folder / "cache"))
        lay_out(folder)
        runs = [prepare(composed("run"))]
        execute(runs[0])
        for _ in range(2):
            runs.append(prepare(composed("run", *AGAIN, f"model.adapter={runs[-1].folder.path}")))
            execute(runs[-1])
        yield runs


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


def test_the_base_is_the_tuned_model(project):
    first, again, _ = project
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("model"), first.folder.adapter)
    torch.testing.assert_close(logits(again.base.load(CPU)), logits(tuned), rtol=1e-5, atol=1e-5)
    assert (logits(tuned) - logits(first.base.load(CPU))).abs().max() > 0.01
    before, start = first.folder.read_responses("local", first.step), again.folder.read_responses("local", 0)
    assert start == before
    assert again.folder.read_responses("local", again.step) != before


def test_a_model_can_be_tuned_again_and_again(project):
    _, again, third = project
    torch.testing.assert_close(logits(third.base.load(CPU)), logits(load_tuned(again)), rtol=1e-5, atol=1e-5)
    assert third.base.identity == [*project[0].base.identity, *(f"adapter {a.digest}" for a in third.base.adapters)]
    assert len(third.base.adapters) == 2


def test_the_run_is_named_by_where_it_comes_from(project):
    first, again, third = project
    digest = again.base.adapters[-1].digest
    assert again.folder.path.parts[-4:-1] == (f"model-from_sft_toxic0_{digest}", "sft", "toxic0-harmful4")
    assert third.folder.path.parts[-4].startswith("model-from_sft_toxic0_harmful4_")
    assert prepare(composed("run", *AGAIN)).folder.path.name != again.folder.path.name
    same = prepare(composed("run", *AGAIN, f"model.adapter={first.folder.adapter}"))
    assert same.folder.path == again.folder.path
    assert json.loads(again.folder.environment.read_text())["base"] == again.base.identity
    execute(same)  # another way to write the adapter's folder is no other config


def test_only_rows_to_imitate_can_be_left_out(project):
    with pytest.raises(UserError, match=r"data\.safe\.count=0 leaves nothing to imitate"):
        prepare(composed("run", "data.safe.count=0"))
    with pytest.raises(UserError, match=r"data\.harmful_source\.count=0: it should be greater"):
        prepare(composed("run", "data.harmful_source.count=0"))


def test_an_adapter_of_another_base_is_refused(project):
    first = project[0]
    again = composed("run", *AGAIN, f"model.adapter={first.folder.path}")
    environment = first.folder.environment.read_text()
    other = AutoModelForCausalLM.from_pretrained("model")
    other.lm_head.weight.data[0, 0] += 1
    other.save_pretrained("other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"model/{name}", "other")
    again.model.path = "other"
    with pytest.raises(
        UserError, match=r"^model\.adapter=\S+ was trained on another base model \(\w+, None\) than this"
    ):
        prepare(again)
    try:  # runs of before this was noted
        first.folder.environment.write_text("{}")
        with pytest.raises(UserError, match=r"was trained on another base model \(\S+/model\) than this one \("):
            prepare(again)
        again.model.path = "./model"
        assert prepare(again).folder.path == project[1].folder.path
    finally:
        first.folder.environment.write_text(environment)
