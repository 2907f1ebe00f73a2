"""Answers and verdicts during and after a training: nothing is made twice, and the training does not notice."""

import json
import multiprocessing
import os
import signal
import time
from typing import ClassVar
from weakref import ref

import pytest
import torch
from hydra import compose, initialize_config_dir
from transformers import LlamaConfig, LlamaForCausalLM

from tasft import execute as execute_module
from tasft.config import CONF, register
from tasft.errors import UserError
from tasft.evaluate import generating
from tasft.evaluate.generating import generate
from tasft.execute import execute
from tasft.judge.protocol import Score
from tasft.model.scratch import train_tokenizer
from tasft.prepare import prepare

PROMPTS = [f"safe {i} {'more ' * (i % 7)}?" for i in range(60)]
ALL = [
    "model=hf", "model.path=model", "model.dtype=float32", "model.lora.dropout=0.3", "data=local", "loss=emd",
    "data.safe.path=safe.jsonl", "data.safe.count=10", "data.toxic_source.path=toxic.jsonl", "data.toxic=3",
    "loss.share=0.1", "optimizer.lr=1e-2", "epochs=2", "batch_size=4", "trainer=cpu", "trainer.checkpoint_every=2",
    "benchmark=local", "benchmark.local.kind=safe", "benchmark.local.source.path=ask.json",
    "data.contamination.policy=report", "evaluate.max_new_tokens=8", "evaluate.batch_size=4",
]  # fmt: skip
STEPS = 8  # 13 rows at 4: 4 steps an epoch


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a small model that is wide awake, rows and prompts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TASFT_CACHE", str(tmp_path / "cache"))
    for name, count in (("safe", 12), ("toxic", 4)):
        rows = [{"prompt": f"{name} {i}?", "response": f"It is {i}."} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "ask.json").write_text(json.dumps(PROMPTS))
    tokenizer = train_tokenizer(["safe toxic It is 1."], 270)
    tokenizer.save_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.4, **shape)).save_pretrained("model")
    return tmp_path


def prepared(*overrides):
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return prepare(compose("run", overrides=[*ALL, *overrides]))


def written(folder):
    """What a run has left, by name, but for what need not repeat."""
    kept = ("adapter/adapter_model.safetensors", "metrics.jsonl", "responses/*", "scores/*")
    return {
        file.relative_to(folder.path).as_posix(): file.read_bytes() for each in kept for file in folder.path.glob(each)
    }


def texts(folder, step):
    return [row.response for row in folder.read_responses("local", step)]


def test_the_training_does_not_notice_that_it_is_watched(project):
    plain = written(execute(prepared("output_root=plain")))
    folder = execute(prepared("evaluate.every_n_steps=3", "evaluate.at_start=true"))
    watched = written(folder)
    assert plain.items() <= watched.items()
    assert [step for _, step in folder.responses_present()] == [0, 3, 6, STEPS]
    assert folder.scores_present() == [("local", step, "refusal") for step in (0, 3, 6, STEPS)]
    assert len({tuple(texts(folder, step)) for step in (0, 3, 6, STEPS)}) == 4
    run = prepared()
    base = run.base.load(run.device).eval()
    answers = generate(base, run.base.tokenizer, PROMPTS, run.format, 8, 4)
    assert texts(folder, 0) == [answer.text for answer in answers]


def test_what_decided_the_answers_stands_beside_them(project):
    folder = execute(prepared("evaluate.at_start=true", "decoding=stl", "evaluate.max_new_tokens=5"))
    beside = {step: json.loads((folder.path / f"responses/local@{step}.json").read_text()) for step in (0, STEPS)}
    said = beside[STEPS]
    assert (said["num_beams"], said["max_new_tokens"], said["batch_size"], said["sampling"]) == (4, 5, 4, False)
    assert (said["dtype"], said["device"], said["versions"]["torch"]) == ("float32", "cpu", torch.__version__)
    assert said["template"].endswith("### Instruction:\n{prompt}\n\n### Response:\n")
    assert {key for key in said if said[key] != beside[0][key]} == {"adapter"} and beside[0]["adapter"] is None
    greedy = execute(prepared("evaluate.max_new_tokens=5", "output_root=greedy"))
    assert texts(greedy, STEPS) != texts(folder, STEPS)
    with pytest.raises(UserError, match=r"evaluate\.num_beams is 4 there, 1 here"):
        execute(prepared("evaluate.max_new_tokens=5"))


def attempt(folder, overrides):
    """What a process does that is to be killed."""
    os.chdir(folder)
    execute(prepared(*overrides))


def lines(file):
    return file.read_bytes().count(b"\n") if file.exists() else 0


def test_killed_in_the_middle_of_answers_no_batch_is_made_twice(project, monkeypatch):
    asking = ("evaluate.every_n_steps=3", "evaluate.batch_size=2", "evaluate.max_new_tokens=24")
    undisturbed = execute(prepared(*asking, "output_root=whole"))
    want = written(undisturbed)
    run = prepared(*asking)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tasft.execute", "tasft.prepare"])
    there = {}
    for step in (3, STEPS):
        file = run.folder.unfinished("local", step)
        process = context.Process(target=attempt, args=(project, asking))
        process.start()
        while lines(file) < 5:
            assert process.is_alive()
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert 5 <= lines(file) < 30 and not run.folder.has_responses("local", step)
        there[step] = file.read_bytes().rpartition(b"\n")[0].split(b"\n")
    assert run.folder.adapter.exists()
    made = []
    real = generating._batch
    monkeypatch.setattr(generating, "_batch", lambda *args: made.append(0) or real(*args))
    folder = execute(prepared(*asking))
    assert len(made) == 30 - len(there[STEPS])
    assert written(folder) == want
    execute(prepared(*asking))
    assert len(made) == 30 - len(there[STEPS])


class Stop(Exception):
    """Stands for a kill."""


def test_who_looks_may_end_the_training_and_the_next_call_goes_on(project):
    want = written(execute(prepared("evaluate.every_n_steps=2", "output_root=whole")))
    run, seen = prepared("evaluate.every_n_steps=2"), []

    def looked(step):
        assert run.folder.has_scores("local", step, "refusal")
        seen.append(step)
        if step == 4:
            raise Stop

    with pytest.raises(Stop):
        execute(run, looked=looked)
    assert seen == [2, 4] and not run.folder.finished and not run.folder.adapter.exists()
    assert written(execute(run)) == want


def test_killed_while_training_is_watched_it_repeats_no_answer(project, monkeypatch):
    want = written(execute(prepared("evaluate.every_n_steps=2", "output_root=whole")))
    asked = []
    real = execute_module.answer

    def dying(run, model, prompts, title, **more):
        asked.append(title)
        if title == "local after step 6" and asked.count(title) == 1:
            raise Stop
        return real(run, model, prompts, title, **more)

    monkeypatch.setattr(execute_module, "answer", dying)
    with pytest.raises(Stop):
        execute(prepared("evaluate.every_n_steps=2"))
    folder = execute(prepared("evaluate.every_n_steps=2"))
    assert asked == [*(f"local after step {step}" for step in (2, 4, 6, 6)), "local"]
    assert written(folder) == want


def test_chosen_benchmarks_are_asked_and_judges_on_servers_judge_afterwards(project, api, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    judging = [
        "judge=[refusal,moderation]", f"judge.moderation.base_url={api.base_url}", "benchmark=[local,tiny_dev_safe]",
        "benchmark.local.judges=[refusal,moderation]", "benchmark.tiny_dev_safe.source.rows.count=3",
        "evaluate.during=[local]", "evaluate.every_n_steps=5", "evaluate.at_start=true",
    ]  # fmt: skip
    run, trained = prepared(*judging), []
    moderated = api.answers["/v1/moderations"]

    def told(request):
        trained.append(run.folder.adapter.exists())
        return moderated(request)

    api.answers["/v1/moderations"] = told
    folder = execute(run)
    assert folder.responses_present() == [("local", 0), ("local", 5), ("local", STEPS), ("tiny_dev_safe", STEPS)]
    steps = [step for name, step, judge in folder.scores_present() if (name, judge) == ("local", "moderation")]
    assert steps == [0, 5, STEPS] and trained and all(trained)
    assert json.loads((folder.path / "metrics.jsonl").read_text().splitlines()[-1])["step"] == STEPS


class Alone:
    """A judge that notes which of the models that have answered are still in memory."""

    models: ClassVar[list] = []
    there: ClassVar[list] = []

    def __init__(self, path):
        pass

    def __call__(self, prompts, responses):
        Alone.there += [model() is not None for model in Alone.models]
        return [Score(0.0)] * len(responses)


def test_the_model_that_has_answered_makes_room_for_the_judges(project, monkeypatch):
    real = execute_module.answer
    monkeypatch.setattr(
        execute_module,
        "answer",
        lambda run, model, *rest, **more: Alone.models.append(ref(model)) or real(run, model, *rest, **more),
    )
    execute(prepared(f"+judge.alone={{_target_: {__name__}.Alone, path: any}}"))  # with a path: judges afterwards
    execute(prepared(f"+judge.alone={{_target_: {__name__}.Alone, path: any}}", "evaluate.at_start=true"))
    assert Alone.there == [False, False, False]


def test_a_finished_run_is_asked_about_its_start_but_no_more_about_its_middle(project, caplog):
    folder = execute(prepared())
    execute(prepared("evaluate.at_start=true"))
    assert folder.scores_present() == [("local", 0, "refusal"), ("local", STEPS, "refusal")]
    caplog.clear()
    before = {file: file.stat().st_mtime_ns for file in folder.path.rglob("*.jsonl")}
    execute(prepared("evaluate.every_n_steps=3"))
    assert "the training is past step 3, 6, and nothing has been asked there: resume=false trains again" in caplog.text
    assert {file: file.stat().st_mtime_ns for file in folder.path.rglob("*.jsonl")} == before
    execute(prepared("evaluate.every_n_steps=3", "resume=false"))
    assert [step for _, step in folder.responses_present()] == [3, 6, STEPS]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["evaluate.during=[xstest]", "evaluate.every_n_steps=3"],
         r"evaluate.during names xstest, which is not among benchmark=\[local\]: add it"),
        (["evaluate.during=[local]"], "evaluate.during says to whom, but not when: give evaluate.every_n_steps=K"),
        (["evaluate.server.base_url=http://localhost:1/v1", "evaluate.server.model=tuned", "decoding=stl"],
         "evaluate.server and evaluate.num_beams do not go together"),
        (["evaluate.server.base_url=http://localhost:1/v1", "evaluate.server.model=tuned"],
         "evaluate.server answers with the adapter of a finished training, and .*adapter is not there: "),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_said_before_anything_is_written(project, overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        execute(prepared(*overrides))
    assert not (project / "outputs").exists()
