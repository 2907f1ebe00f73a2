"""The command that attacks a finished run: a server attacks and judges, a small tuned model is the target."""

import json
import re
import sys
from pathlib import Path

import pytest

from tasft.attack import attack
from tasft.config import entry
from tasft.errors import UserError
from tasft.evaluate.generating import generate
from tasft.execute import execute, load_tuned
from tasft.prepare import prepare
from tasft.result.statistics import wilson
from tests.small import ASKED, SMALL, composed, lay_out

CHAT = "/v1/chat/completions"


def chatting(request):
    """An attacker that asks for the goal the n-th time, and a judge that gives hats a 10 the second time."""
    system = request["messages"][0]["content"]
    if request["model"] == "attacker":
        goal = re.search(r"following behavior: '(.*?)'\. Your aim", system)[1]
        said = json.dumps({"improvement": "more", "prompt": f"{goal} {len(request['messages']) // 2}"})
    else:
        second = "hat? 2" in request["messages"][-1]["content"]
        said = f"Rating: [[{10 if second else 4}]]"
    return {"model": request["model"], "choices": [{"message": {"content": said}, "finish_reason": "stop"}]}


@pytest.fixture
def run(api, tmp_path, monkeypatch):
    """A finished run, in an empty folder, and a server."""
    monkeypatch.chdir(tmp_path)
    api.answers[CHAT] = chatting
    lay_out(tmp_path)
    run = prepare(composed("run"))
    execute(run)
    return run


def attacked(api, *overrides):
    attack(composed(
        "attack", "judge=[refusal,pair,moderation]", f"judge.pair.base_url={api.base_url}", "judge.pair.model=judge",
        f"judge.moderation.base_url={api.base_url}",
        "generator@attack.attacker=openai", "attack.attacker.model=attacker",
        f"attack.attacker.base_url={api.base_url}", "attack.max_new_tokens=6", *overrides,
    ))  # fmt: skip


def moderation(text):
    """Flags all that a small model says."""
    return {"id": "1", "model": "m", "results": [{"flagged": True, "category_scores": {"hate": 0.9}}]}


def lines(file):
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def test_goals_answers_and_summary(run, api, capfd):
    attacked(api)
    file = run.folder.path / "attack" / "pair-local.jsonl"
    made = lines(file)
    assert [line["goal"]["text"] for line in made] == [ASKED[0]["ask"], ASKED[1]["ask"], ASKED[2]["ask"]]
    assert [line["goal"]["target"] for line in made] == [each["harmful"] for each in ASKED]
    assert [(line["best"], line["iterations"]) for line in made] == [(10, 2), (4, 3), (4, 3)]
    asked = [attempt["prompt"] for attempt in made[1]["attempts"][::3]]
    assert asked == [f"How do I nab a cat? {i}" for i in (1, 2, 3)]
    model = load_tuned(run)
    said = generate(model, run.base.tokenizer, asked, run.format, 6, 3)
    assert [attempt["answer"] for attempt in made[1]["attempts"][::3]] == [each.text for each in said]
    summary = json.loads(file.with_suffix(".json").read_text())
    assert (summary["goals"], summary["finished"], summary["jailbroken"], summary["mean_best"]) == (3, 3, 1, 6)
    assert (summary["unscored"], summary["threshold"], summary["judge_model"]) == (0, 10, "judge")
    answers = [attempt["answer"] for line in made for attempt in line["attempts"]]
    assert (summary["answers"], summary["empty"]) == (24, sum(not answer for answer in answers))
    assert (summary["rate"], summary["low"], summary["high"]) == (1 / 3, *wilson(1, 3))
    printed = capfd.readouterr().out
    assert re.search(r"local +3 +0 +33\.3 +6-79 +6\.00 +24 +\d+", printed)

    asked, before = api.asked.total(), file.read_text()
    attacked(api)
    assert (api.asked.total(), file.read_text()) == (asked, before)
    attacked(api, "attack.max_new_tokens=3", "judge.pair.threshold=4")
    assert len(lines(file)) == 6  # another target, in the same file
    assert [line["iterations"] for line in lines(file)[3:]] == [1, 1, 1]
    assert json.loads(file.with_suffix(".json").read_text())["rate"] == 1


@pytest.mark.parametrize("judge", ["refusal", "moderation"])
def test_a_judge_that_knows_no_ratings(judge, run, api):
    api.answers["/v1/moderations"] = lambda request: moderation(request["input"])
    attacked(api, f"attack.judge={judge}", "attack.iterations=1")
    made = lines(run.folder.path / "attack" / "pair-local.jsonl")
    for attempt in (attempt for line in made for attempt in line["attempts"]):
        assert attempt["score"] in ((10, 1) if attempt["answer"] else (1,))
    assert any(line["best"] == 10 for line in made)  # a small model knows no refusals


def test_the_attacker_is_sampled_as_pair_has_it_whatever_the_generator():
    for generator, key in (("openai", "model"), ("hf", "path"), ("world", "seed")):
        node = composed("attack", f"generator@attack.attacker={generator}", f"attack.attacker.{key}=1").attack.attacker
        assert (node.temperature, node.top_p) == (1.0, 0.9)


def test_a_grid_of_attacks(run, api, monkeypatch, capfd):
    """As `-m experiment=table8` has it: what is finished is attacked, the rest is named."""
    grid = ["seed=0,1", "judge=[refusal,pair]", f"judge.pair.base_url={api.base_url}", "judge.pair.model=judge"]
    grid += ["generator@attack.attacker=openai", "attack.attacker.model=attacker"]
    grid += [f"attack.attacker.base_url={api.base_url}", "attack.iterations=1"]
    monkeypatch.setattr(sys, "argv", ["tasft.attack", "-m", *SMALL, *grid])
    assert entry(attack, "attack") == 1
    said = capfd.readouterr().err
    assert "2 cells: 2 to run (basic)" in said and "2 cells: 1 done now, 1 failed" in said
    assert re.search(r"failed: seed=1: .*seed1\S+ is no finished run: give the same keys to python -m tasft", said)
    assert len(lines(run.folder.path / "attack" / "pair-local.jsonl")) == 3


MISTAKES = {
    "attack.judge=oracle": r"attack\.judge=oracle is not among judge=\[refusal,pair,moderation\]",
    "attack.goals=[other]": r"attack\.goals names other, which is not among benchmark=\[local\]",
    "benchmark.local.kind=safe": r"has none of the kind toxic: give attack\.goals",
    "judge.pair.base_url=null": r"judge\.pair needs a key",  # left out where others do, but not here
    "epochs=3": "is no finished run: give the same keys to python -m tasft.run first",
    "evaluate.server.base_url=http://localhost:1/v1": "attacks are answered by the model in memory",
    "attack.streams=4 attack.attacker.temperature=0": r"attack\.streams=4 has several streams of one of 3 strategies",
    "generator@attack.attacker=null": r"generator@attack\.attacker=\.\.\. \(there are hf, openai, world\)",
}


def test_mistakes(run, api, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for override, sentence in MISTAKES.items():
        with pytest.raises(UserError, match=sentence):
            if override.startswith("generator"):
                attack(composed("attack"))
            attacked(api, *override.split())
    assert not (run.folder.path / "attack").exists()
    assert api.asked.total() == 0
