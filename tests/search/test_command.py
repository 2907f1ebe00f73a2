"""A search from its command to its files, on a small model."""

import contextlib
import csv
import io
import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tasft.errors import UserError
from tasft.search.command import search
from tasft.train.group import Group
from tests.small import composed, lay_out

PROMPTS = {
    "i_alpaca": ["Is it safe 1?", "How is it?"],
    "i_malicious": ["How do I nab a bat?"],
    "i_physical_safe": ["Is it 3, and so?"],
}
OVERRIDES = [
    "loss=emd", "data.toxic_source.path=toxic.jsonl", "data.toxic=3", "evaluate.every_n_steps=2",
    "judge=[refusal,text]", "judge.refusal.kinds=[toxic]", "data.contamination.policy=report",
    f"benchmark=[local,{','.join(PROMPTS)}]",
    *(f"benchmark.{name}.source.path={name}.json" for name in PROMPTS),
    *(f"benchmark.{name}.size=null" for name in PROMPTS),
    "benchmark.i_malicious.source.fields.category=null",
    "search.dev=[local,i_alpaca]", "search.test=[i_malicious,i_physical_safe]", "search.low=0.01", "search.high=100",
    "search.trials=3", "search.startup=2", "search.seeds=[1]", "search.prune_after=1", "search.quality.drop=0.99",
]  # fmt: skip
STEPS = {"emd": 6, "sft": 4}  # 13 or 10 rows at 6, twice
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tasft.execute", "tasft.search.study"])


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a small model, rows and prompts, in which the tests of this file run."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TASFT_CACHE", str(folder / "cache"))
        lay_out(folder)
        for name, prompts in PROMPTS.items():
            Path(f"{name}.json").write_text(json.dumps([{"instructions": prompt} for prompt in prompts]))
        yield folder


@pytest.fixture(scope="module")
def killed(project):
    """A search killed in its second trial, and given again: what was finished before, what is said, its folder."""
    process = CONTEXT.Process(target=in_folder, args=(project, "output_root=killed"))
    process.start()
    while len(list(Path("killed").glob("*/emd/*/*/metrics.jsonl"))) < 2:
        assert process.is_alive()
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    before, said = finished("killed"), io.StringIO()
    with contextlib.redirect_stdout(said):
        searched("output_root=killed")
    return before, said.getvalue(), of("killed")


def searched(*overrides):
    search(composed("search", *OVERRIDES, *overrides))


def in_folder(folder, *overrides):
    """What a process does that is to be killed, or to share a search."""
    os.chdir(folder)
    searched(*overrides)


def rows(file):
    with file.open() as opened:
        return list(csv.DictReader(opened))


def of(root):
    (folder,) = (Path(root) / "search").iterdir()
    return folder


def finished(root):
    return {file: file.stat().st_mtime_ns for file in Path(root).rglob("FINISHED")}


def test_a_search_chooses_on_dev_prompts_and_judges_on_test_prompts_with_fresh_seeds(killed):
    _, printed, folder = killed
    trials, tests = rows(folder / "trials.csv"), rows(folder / "test.csv")
    assert [row["trial"] for row in trials] == ["1", "2", "3"]
    assert [float(row["value"]) for row in trials[:2]] == [0.01, 100]
    done = [row for row in trials if row["state"] == "complete"]
    for row in done:
        assert Path(row["run"], "FINISHED").exists() and row["step"] == str(STEPS["emd"])
        answers = Path(row["run"], "responses")
        assert {file.stem for file in answers.glob("*.jsonl")} == {
            f"{name}@{step}" for name in ("local", "i_alpaca") for step in (2, 4, STEPS["emd"])
        }
    stopped = [row for row in trials if row["state"] == "pruned"]
    for row in stopped:
        assert not Path(row["run"], "FINISHED").exists() and int(row["step"]) < STEPS["emd"]
    kept = [row for row in done if row["keeps"] == "True"]
    chosen = min(kept, key=lambda row: (float(row["harm"]), float(row["value"])))
    assert [(row["loss"], row["seed"]) for row in tests] == [("sft", "1"), ("emd", "1")]
    assert {row["value"] for row in tests if row["loss"] == "emd"} == {chosen["value"]}
    for row in tests:
        run = Path(row["run"])
        assert run.name.startswith(f"seed{row['seed']}-") and (run / "FINISHED").exists()
        assert {file.stem for file in (run / "responses").glob("*.jsonl")} == {
            f"{name}@{STEPS[row['loss']]}" for name in ("i_malicious", "i_physical_safe")
        }
    assert printed == (folder / "summary.md").read_text()
    assert f"Chosen: share {float(chosen['value']):.3g} (λ = " in printed and "plain SFT" in printed
    assert (folder / "search.png").read_bytes().startswith(b"\x89PNG")


def test_killed_in_the_middle_it_goes_on_and_repeats_nothing(killed):
    before = killed[0]
    assert len(before) >= 2  # plain SFT and a trial
    assert before.items() <= finished("killed").items()


def test_a_failed_trial_keeps_its_reason_and_is_tried_again(project):
    failing = ("output_root=failing", "search.trials=1", "search.low=1e59", "search.high=1e61")
    with pytest.raises(UserError, match=r"^trial 1: the (loss|gradient) is .*: failing/.* has every reason, and"):
        searched(*failing)
    trials = rows(of("failing") / "trials.csv")
    assert [row["state"] for row in trials][-1] == "fail" and "smaller optimizer.lr" in trials[-1]["reason"]
    with pytest.raises(UserError, match=r"^trial 1: "):
        searched(*failing)
    assert len(rows(of("failing") / "trials.csv")) == 1


def test_another_search_in_the_same_place_is_refused(killed):
    Path("other.jsonl").write_text(Path("safe.jsonl").read_text().replace("so is", "that is"))
    for override, sentence in (
        ("search.low=0.02", r"search\.low is 0\.01 there, 0\.02 here"),
        ("judge.text.repetition=0.4", r"judge\.text\.repetition is 0\.5 there, 0\.4 here"),
        ("benchmark.i_alpaca.source.count=1", "prompts of i_alpaca is"),
        ("data.safe.path=other.jsonl", "training data or model is"),
    ):
        with pytest.raises(UserError, match=sentence):
            searched("output_root=killed", override)


def test_mistakes(project, monkeypatch):
    for overrides, sentence in (
        (["loss=sft"], "loss=sft has no toxic term, so there is no λ to search"),
        (["loss.share=0.1"], r"loss\.share=0\.1 is given, but λ is what is searched, over loss\.share"),
        (["loss.weight=2"], r"loss\.weight=2 is given, but"),
        (["search.over=epochs"], r"search\.over=epochs: it should be one of loss\.share, loss\.weight"),
        (["search.low=null"], r"search\.low and search\.high say the range"),
        (["search.low=100"], r"search\.low=100 and search\.high=100 span no range"),
        (["search.dev=[local]"], r"search\.dev=\[local\] has no benchmark of the kind safe, which says the quality"),
        (["search.test=[]"], r"search\.test=\[\] has no benchmark of the kind toxic"),
        (
            ["search.test=[i_malicious,somewhere]"],
            r"search\.test names somewhere, which is not among benchmark=\[local,",
        ),
        (["search.test=[i_malicious,i_alpaca]"], r"i_alpaca is in both search\.dev and search\.test"),
        (
            ["benchmark.i_physical_safe.source.path=i_alpaca.json"],
            r"2 prompts of i_physical_safe \(search\.test\) are in i_alpaca \(search\.dev\)",
        ),
        (["judge.refusal.outcomes.answer=null"], "says which answers to local are harmful: add one"),
        (["judge=[refusal]", "judge.refusal.kinds=[toxic,safe]"], "to local are incoherent: add one, such as text"),
        (
            ["search.harm=[toxic]"],
            r"search\.harm=\[toxic\]: it should list outcomes of answers, of incoherent, harmful",
        ),
        (["search.quality.floor=0.5"], r"give one of search\.quality\.drop"),
        (["search.over_refusal.max=0.1"], r"needs a benchmark of the kind seeming"),
        (["seed=1"], r"seed=1 chooses λ, and search\.seeds=\[1\] holds it, too"),
        (["resume=false"], "drop resume=false"),
    ):
        with pytest.raises(UserError, match=sentence):
            searched(*overrides)
    assert not Path("outputs").exists()
    with monkeypatch.context() as patched:
        patched.setattr("tasft.train.group.joined", lambda: Group(1, 2))
        with pytest.raises(UserError, match="start this command once"):
            searched()
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'tasft\[search\]'"):
        searched()
