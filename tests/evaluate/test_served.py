"""Answers from a server that runs the model: those of the model in memory, and none without the adapter."""

import json
from dataclasses import replace
from hashlib import sha256

import pytest
import torch
from hydra import compose, initialize_config_dir
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

from tasft.config import CONF, register
from tasft.errors import UserError
from tasft.evaluate.generating import begin, generate
from tasft.evaluate.served import served
from tasft.execute import execute
from tasft.model.lora import with_lora
from tasft.model.scratch import train_tokenizer
from tasft.prepare import prepare
from tasft.prompt import prompt_format
from tasft.schema import Lora, Served

PROMPTS = [f"Name fruit {i}." for i in range(12)]
NEW = 8
STOPS = list(range(3, 270, 9))


def fresh(tokenizer):
    torch.manual_seed(3)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.4, eos_token_id=STOPS, **shape))


def adapted(tokenizer, folder, seed):
    model = with_lora(fresh(tokenizer), Lora(4, 8, 0.0), seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.5)
    model.save_pretrained(str(folder))
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(PROMPTS, 270)


@pytest.fixture
def serving(api, tokenizer, tmp_path):
    """Makes the server answer as vLLM does, with the models by their names."""

    def serve(models, **cards):
        @torch.no_grad()
        def complete(request):
            assert set(request) == {"model", "prompt", "max_tokens", "temperature"} and request["temperature"] == 0
            ids, model = request["prompt"], models[request["model"]]
            new = []
            while len(new) < request["max_tokens"]:
                token = int(model(torch.tensor([ids + new])).logits[0, -1].argmax())
                if token in (*STOPS, tokenizer.eos_token_id):
                    break
                new.append(token)
            text, finish = tokenizer.decode(new, skip_special_tokens=True), "stop" if len(new) < NEW else "length"
            choice = {"index": 0, "text": text, "finish_reason": finish}
            return {"id": "1", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]}

        api.answers["/v1/completions"] = complete
        listed = [{"id": name, "root": str(tmp_path / "adapter")} | cards.get(name, {}) for name in models]
        api.answers["/v1/models"] = lambda _: {"object": "list", "data": listed}
        return Served(api.base_url, "tuned", "base")

    return serve


def asked(settings, tokenizer, adapter, prefix=None, prompts=PROMPTS):
    format = prompt_format("short", tokenizer)
    return served(settings, "path", adapter, tokenizer, prompts, format, NEW, "answering", prefix)


def test_answers_are_those_of_the_model_in_memory(serving, api, tokenizer, tmp_path):
    tuned, format = adapted(tokenizer, tmp_path / "adapter", 1), prompt_format("short", tokenizer)
    settings = serving({"base": fresh(tokenizer).eval(), "tuned": tuned})
    prefix = ["", "Name pear", [40, 41]] * 4
    for beginnings in (None, prefix):
        want = generate(tuned, tokenizer, PROMPTS, format, NEW, 4, prefix=beginnings)
        assert asked(settings, tokenizer, tmp_path / "adapter", beginnings) == want
    assert len({answer.truncated for answer in want}) == 2
    with tuned.disable_adapter():
        base = generate(tuned, tokenizer, PROMPTS, format, NEW, 4)
    assert asked(settings, tokenizer, None) == base != want
    answers = api.asked.total()
    asked(settings, tokenizer, tmp_path / "adapter")
    assert api.asked.total() == answers + 2 * 8  # only what shows that the adapter is applied


def test_an_adapter_that_is_not_applied_is_refused(serving, tokenizer, tmp_path):
    adapted(tokenizer, tmp_path / "adapter", 1)
    base = fresh(tokenizer).eval()
    settings = serving({"base": base, "tuned": base})
    with pytest.raises(UserError, match="gives tuned and base the same 8 answers: it does not apply the adapter"):
        asked(settings, tokenizer, tmp_path / "adapter")
    assert len(asked(settings, tokenizer, None)) == 12


def test_each_run_has_the_answers_of_its_own_adapter_or_none(serving, api, tokenizer, tmp_path, monkeypatch):
    """One server for a grid: by path, also a relative one, and by the digest in a name where paths differ."""
    monkeypatch.chdir(tmp_path)
    mine, other = tmp_path / "runs/adapter1", tmp_path / "runs/adapter2"
    models = {"base": fresh(tokenizer).eval(), "a": adapted(tokenizer, mine, 1), "b": adapted(tokenizer, other, 2)}
    settings = serving(models, base={"root": "base"}, a={"root": "runs/../runs/adapter1"}, b={"root": str(other)})
    found = replace(settings, model=None)
    answers = [asked(found, tokenizer, each) for each in (mine, other)]
    assert answers[0] != answers[1]
    assert asked(replace(settings, model="a"), tokenizer, mine) == answers[0]
    before = api.asked.total()
    with pytest.raises(UserError) as said:
        asked(replace(settings, model="b"), tokenizer, mine)
    digest = sha256((mine / "adapter_model.safetensors").read_bytes()).hexdigest()[:12]
    assert str(said.value) == (
        f"{mine} is to answer, and {settings.base_url} calls {other} b: give vLLM --enable-lora --lora-modules"
        f" b={mine}; or, where it sees that folder at another path, tuned-{digest}=<path>, and leave"
        " evaluate.server.model=b out"
    )
    with pytest.raises(UserError, match=r"knows no c: give vLLM --enable-lora --lora-modules c="):
        asked(replace(settings, model="c"), tokenizer, mine)
    elsewhere = {"root": "/on/another/machine"}
    served_there = replace(serving(models, a=elsewhere, b=elsewhere), model=None)
    with pytest.raises(UserError, match=r"has no model with that adapter: give vLLM .* --lora-modules tuned=/"):
        asked(served_there, tokenizer, mine)
    assert api.asked.total() == before  # nobody was asked anything
    named = {"base": models["base"], "b": models["b"], f"tuned-{digest}": models["a"]}
    named_there = replace(serving(named, b=elsewhere, **{f"tuned-{digest}": elsewhere}), model=None)
    assert asked(named_there, tokenizer, mine) == answers[0]
    here = {"root": str(mine)}  # as it was read before resume=false
    again = replace(serving(named, b=here, **{f"tuned-{digest}": here}), model=None)
    assert asked(again, tokenizer, mine) == answers[0]
    before = api.asked.total()
    twice = serving(models, base={"root": "base"}, a=here, b=here)
    with pytest.raises(UserError) as said:
        asked(replace(twice, model=None), tokenizer, mine)
    assert str(said.value) == (
        f"{settings.base_url} has read {mine} more than once, as a, b: say which was the last with"
        " evaluate.server.model=<name>"
    )
    assert api.asked.total() == before
    assert asked(replace(twice, model="a"), tokenizer, mine) == answers[0]


def test_a_server_that_says_nothing_of_its_models_is_one_sentence(serving, api, tokenizer, tmp_path):
    adapted(tokenizer, tmp_path / "adapter", 1)
    settings = serving({})
    for answer, why in ((None, "the server says 404: no such path"), (lambda _: {"data": 1}, "the reply is garbage: ")):
        api.answers["/v1/models"] = answer
        with pytest.raises(UserError, match=rf"/v1 does not list its models \({why}"):
            asked(settings, tokenizer, tmp_path / "adapter")


def test_a_prompt_that_is_too_long_for_the_server_is_named_before_anybody_is_asked(serving, api, tokenizer, tmp_path):
    tuned, long = adapted(tokenizer, tmp_path / "adapter", 1), [PROMPTS[0], PROMPTS[1] * 9, *PROMPTS[2:]]
    lengths = [len(each.ids) for each in begin(tokenizer, long, prompt_format("short", tokenizer))]
    models, room = {"base": fresh(tokenizer).eval(), "tuned": tuned}, lengths[1] + NEW
    with pytest.raises(UserError) as said:
        asked(serving(models, base={"max_model_len": room - 1}), tokenizer, tmp_path / "adapter", prompts=long)
    assert f"prompt 2 of 12 has {lengths[1]} tokens, with evaluate.max_new_tokens={NEW} more than" in str(said.value)
    assert f"start vLLM with --max-model-len {room} (" in str(said.value)
    assert not api.asked
    assert (
        len(asked(serving(models, base={"max_model_len": room}), tokenizer, tmp_path / "adapter", prompts=long)) == 12
    )


def test_a_prompt_without_an_answer_is_a_mistake_and_the_others_are_kept(serving, api, tokenizer, tmp_path):
    settings = serving({"base": fresh(tokenizer).eval(), "tuned": adapted(tokenizer, tmp_path / "adapter", 1)})
    complete, last = api.answers["/v1/completions"], PROMPTS[-1]
    broken = {"status": 400, "error": {"message": "too long"}}
    api.answers["/v1/completions"] = lambda request: (
        dict(broken) if last in tokenizer.decode(request["prompt"]) else complete(request)
    )
    with pytest.raises(
        UserError,
        match=r"no answer to 1 of 12 prompts, first to prompt 12 of \d+ tokens \(the server says 400: too long\)",
    ):
        asked(settings, tokenizer, tmp_path / "adapter")
    api.answers["/v1/completions"] = complete
    before = api.asked.total()
    assert len(asked(settings, tokenizer, tmp_path / "adapter")) == 12
    assert api.asked.total() == before + 2 * 8 + 1


def test_a_run_is_answered_by_the_server_once_it_is_trained(serving, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{i}?", "response": f"It is {i}."} for i in range(6)]
    (tmp_path / "safe.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "ask.json").write_text(json.dumps(PROMPTS))
    tokenizer.save_pretrained("model")
    fresh(tokenizer).save_pretrained("model")
    register()

    def run(*overrides):
        config = [
            "model=hf", "model.path=model", "model.dtype=float32", "data=local", "data.safe.path=safe.jsonl",
            "data.safe.count=6", "loss=sft", "data.toxic=0", "trainer=cpu", "epochs=4", "optimizer.lr=1e-1",
            f"evaluate.max_new_tokens={NEW}", *overrides,
        ]  # fmt: skip
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return prepare(compose("run", overrides=config))

    asking = ["benchmark=local", "benchmark.local.kind=safe", "benchmark.local.source.path=ask.json"]
    folder = execute(run("benchmark=[]"))
    tuned = PeftModel.from_pretrained(fresh(tokenizer), str(folder.adapter)).eval()
    settings = serving({"model": fresh(tokenizer).eval(), "tuned": tuned}, tuned={"root": str(folder.adapter)})
    server = [f"evaluate.server.base_url={settings.base_url}", "evaluate.at_start=true"]
    monkeypatch.setattr("tasft.execute.load_tuned", lambda run: pytest.fail("no model is needed"))
    made = run(*asking, *server)
    assert execute(made).path == folder.path
    steps = [step for _, step in folder.responses_present()]
    answers = {step: [row.response for row in folder.read_responses("local", step)] for step in steps}
    format = prompt_format("stl", tokenizer)
    assert answers[made.step] == [answer.text for answer in generate(tuned, tokenizer, PROMPTS, format, NEW, 4)]
    with tuned.disable_adapter():
        assert answers[0] == [answer.text for answer in generate(tuned, tokenizer, PROMPTS, format, NEW, 4)]
    beside = json.loads((folder.path / f"responses/local@{made.step}.json").read_text())
    assert beside["server"] == {"base_url": settings.base_url, "model": None}
    assert folder.finished and len(folder.read_scores("local", made.step, "refusal")) == 12
