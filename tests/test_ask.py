"""Several runs of a small model side by side."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from tasft.ask import ask
from tasft.config import CONF
from tasft.errors import UserError
from tasft.execute import execute
from tasft.prepare import prepare
from tests.small import ASKED, composed, lay_out


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs of one base model, and one with another format."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TASFT_CACHE", str(folder / "cache"))
        lay_out(folder)
        made = [
            prepare(composed("run", "evaluate.at_start=true", *more))
            for more in ((), ("seed=5",), ("data.format=stl",))
        ]
        for run in made:
            execute(run)
        yield made


def asked(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("ask", overrides=["trainer=cpu", "evaluate.max_new_tokens=5", *overrides])
    ask(cfg)


def test_each_model_says_what_its_run_says(runs, capfd):
    Path("prompts.txt").write_text("\n".join(each["ask"] for each in ASKED) + "\n\n")
    folders = [str(run.folder.path) for run in runs[:2]]
    asked("ask.file=prompts.txt", f"ask.runs=[{folders[0]},{folders[1]}/adapter]", "ask.out=said.jsonl")
    said = [json.loads(line) for line in Path("said.jsonl").read_text().splitlines()]
    by = {"base model": runs[0].folder.read_responses("local", 0)}
    by |= {"/".join(run.folder.path.parts[-3:]): run.folder.read_responses("local", run.step) for run in runs[:2]}
    assert [(row["by"], row["prompt"], row["response"]) for row in said] == [
        (name, row.prompt, row.response) for name, rows in by.items() for row in rows
    ]
    assert len({row["response"] for row in said}) > 3  # else the adapters were not switched
    scores = runs[0].folder.read_scores("local", runs[0].step, "refusal")
    assert [row["judges"]["refusal"]["label"] for row in said[3:6]] == [score.label for score in scores]
    printed = capfd.readouterr().out
    assert all(each["ask"] in printed for each in ASKED) and "refusal: answer" in printed


def test_without_the_base_model(runs, capfd):
    asked("ask.prompt='How [bold] is it?'", f"ask.runs=[{runs[0].folder.path}]", "ask.base=false")
    printed = capfd.readouterr().out
    assert "How [bold] is it?" in printed and "base model" not in printed


def test_a_judge_that_fails_loses_no_answer(runs, capfd):
    dead = ["judge=[pair,refusal]", "judge.pair.base_url=http://127.0.0.1:9/v1", "judge.pair.model=any"]
    given = ["ask.prompt='How is it?'", f"ask.runs=[{runs[0].folder.path}]", "ask.base=false", "ask.out=one.jsonl"]
    with pytest.raises(UserError, match=r"^judge\.pair: http\S+ cannot be reached.*The answers are there without"):
        asked(*given, *dead)
    [row] = map(json.loads, Path("one.jsonl").read_text().splitlines())
    assert row["prompt"] == "How is it?" and set(row["judges"]) == {"refusal"}
    printed = capfd.readouterr().out
    assert "How is it?" in printed and "refusal: " in printed


def test_mistakes(runs):
    run = str(runs[0].folder.path)
    for overrides, sentence in (
        (["ask.prompt=a"], "ask.runs is empty"),
        ([f"ask.runs=[{run}]"], "give either ask.prompt"),
        ([f"ask.runs=[{run}]", "ask.prompt=a", "ask.file=b"], "give either ask.prompt"),
        ([f"ask.runs=[{run}]", "ask.file=none.txt"], "ask.file=none.txt cannot be read: No such file"),
        ([f"ask.runs=[{run}]", "ask.prompt=' '"], "there is no prompt"),
        (["ask.runs=[nowhere]", "ask.prompt=a"], "ask.runs=nowhere: no such folder"),
        ([f"ask.runs=[{run},{runs[2].folder.path}]", "ask.prompt=a"], r"differ in their format \(short, stl\)"),
    ):
        with pytest.raises(UserError, match=sentence):
            asked(*overrides)


def test_a_base_model_that_has_changed_is_not_asked(runs):
    weights = Path("model/model.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(UserError, match="model is not, or no longer, the base model of"):
            asked("ask.prompt=a", f"ask.runs=[{runs[0].folder.path}]")
    finally:
        weights.write_bytes(content)


def test_a_judge_that_cannot_be_had_is_left_out(runs, caplog, capfd, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    asked("ask.prompt='How is it?'", f"ask.runs=[{runs[0].folder.path}]", "judge=[xstest,refusal]")
    assert "judge.xstest is left out: judge.xstest needs a key" in caplog.text
    assert "refusal: " in capfd.readouterr().out
