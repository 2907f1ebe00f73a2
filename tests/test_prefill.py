"""Answers that were begun for a small model: real runs."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tasft.data.tokenize import answer_ids
from tasft.errors import UserError
from tasft.evaluate import generating
from tasft.execute import execute, load_tuned
from tasft.prefill import prefill
from tasft.prepare import prepare
from tasft.result.prefill import points, sources
from tasft.result.store import RunDir
from tasft.result.table import read_table
from tests.small import ASKED, composed, lay_out

NS = [0, 1, 3, 40]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, and its folder after it has been prefilled."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TASFT_CACHE", str(folder / "cache"))
        lay_out(folder)
        run = prepare(composed("run"))
        with pytest.raises(UserError, match=r"is no finished run: give the same keys to python -m tasft\.run first"):
            prefill(composed("prefill"))
        execute(run)
        prefill(composed("prefill", f"prefill.tokens={NS}"))
        yield run


def folder_of(run):
    return RunDir(run.folder.path / "prefill" / "benchmark")


def answers(run, n):
    return folder_of(run).read_responses(f"local-{n}", run.step)


def test_without_a_token_given_the_answers_are_the_runs(run):
    assert answers(run, 0) == run.folder.read_responses("local", run.step)
    assert folder_of(run).read_scores("local-0", run.step, "refusal") == run.folder.read_scores(
        "local", run.step, "refusal"
    )


@torch.no_grad()
def test_the_model_goes_on_where_the_given_tokens_end(run):
    model, tokenizer = load_tuned(run), run.base.tokenizer
    for n in (1, 3):
        for row, asked in zip(answers(run, n), ASKED, strict=True):
            prompt, harmful = answer_ids(tokenizer, asked["ask"], asked["harmful"], run.format)
            ids = [*prompt, *harmful[:n]]
            for _ in range(5):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
                if ids[-1] == tokenizer.eos_token_id:
                    break
            assert row.response == tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip()
            assert row.started == tokenizer.decode(harmful[:n]).strip()
            assert asked["harmful"].startswith(row.started)


def test_an_answer_that_is_shorter_is_given_whole_and_counted(run):
    lengths = [len(answer_ids(run.base.tokenizer, e["ask"], e["harmful"], run.format)[1]) for e in ASKED]
    shorter = {n: sum(length < n for length in lengths) for n in NS}
    assert shorter[0] == 0 and shorter[40] == 3
    assert {each.tokens: each.shorter for each in points(run.folder, "benchmark") if each.tokens in NS} == shorter
    for row, asked in zip(answers(run, 40), ASKED, strict=True):
        assert row.started == asked["harmful"]
        assert row.response.startswith(asked["harmful"])


def test_rates_are_of_the_whole_and_of_what_was_added(run):
    found = {(each.tokens, each.alone): each.harmful for each in points(run.folder, "benchmark")}
    assert sources(run.folder) == ["benchmark"]
    assert sorted(found) == [(n, alone) for n in NS for alone in (False, True)]
    assert found[0, True] == found[0, False]
    for n in NS[1:]:
        for alone in (False, True):
            name = f"local-{n}-continued" if alone else f"local-{n}"
            scores = folder_of(run).read_scores(name, run.step, "refusal")
            scored = [score for score in scores if score.score is not None]
            rate = found[n, alone]
            assert rate.successes == sum(score.label == "answer" for score in scored)  # which stands for harmful here
            assert (rate.n, rate.unscored) == (len(scored), len(scores) - len(scored))


def test_beside_the_answers_stands_what_decided_them(run):
    beside = folder_of(run).read_settings("local-40", run.step)
    own = run.folder.read_settings("local", run.step)
    assert own and {key: beside[key] for key in own} == own  # template, dtype, batch size, versions
    assert (beside["tokens"], beside["shorter"]) == (40, 3)


def test_no_table_of_the_run_knows_of_it(run):
    assert {row.benchmark for row in read_table(Path("outputs")).rows} == {"local", "pooled"}
    assert [name for name, _ in run.folder.responses_present()] == ["local"]


def test_again_makes_what_is_not_there(run):
    files = {f: f.stat().st_mtime_ns for f in folder_of(run).path.rglob("*@*")}
    prefill(composed("prefill", "prefill.tokens=[0,2,3]"))
    after = {f: f.stat().st_mtime_ns for f in folder_of(run).path.rglob("*@*")}
    new = {str(f.relative_to(folder_of(run).path)) for f in after.keys() - files.keys()}
    at = f"@{run.step}"
    assert new == {
        f"responses/local-2{at}.jsonl", f"responses/local-2{at}.json", f"scores/local-2{at}.refusal.jsonl",
        f"scores/local-2-continued{at}.refusal.jsonl",
    }  # fmt: skip
    assert all(after[f] == files[f] for f in files)


def test_stopped_in_the_middle_no_batch_is_made_twice(run, monkeypatch):
    made, real = [], generating._batch

    def stopping(*arguments):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(0)
        return real(*arguments)

    monkeypatch.setattr(generating, "_batch", stopping)
    asking = ("prefill", "prefill.tokens=[5]", "evaluate.batch_size=1")
    with pytest.raises(KeyboardInterrupt):
        prefill(composed(*asking))
    assert not folder_of(run).has_responses("local-5", run.step)
    made.clear()
    monkeypatch.setattr(generating, "_batch", lambda *arguments: made.append(0) or real(*arguments))
    prefill(composed(*asking))
    assert len(made) == 1 and len(answers(run, 5)) == 3
    assert not folder_of(run).unfinished("local-5", run.step).exists()


TWO = ["benchmark=[local,tiny_dev_seen]", "judge=[refusal,oracle]", "benchmark.local.judges=[refusal]"]


def test_benchmarks_may_have_different_judges_of_harm(run, capfd):
    prefill(composed("prefill", "prefill.tokens=[0,40]", *TWO, "benchmark.tiny_dev_seen.judges=[oracle]"))
    judges = {each.benchmark: each.judge for each in points(run.folder, "benchmark", ["refusal", "oracle"])}
    assert judges == {"local": "refusal", "tiny_dev_seen": "oracle"}
    assert re.findall(r"^ *(\w+) +(\w+) +(\d+) +(\d+) +[\d.-]+", capfd.readouterr().out, re.MULTILINE) == [
        ("local", "refusal", "0", "0"), ("local", "refusal", "40", "3"),
        ("tiny_dev_seen", "oracle", "0", "0"), ("tiny_dev_seen", "oracle", "40", "0"),
    ]  # fmt: skip


def test_one_judge_of_harm_of_two_benchmarks_says_it_of_both_together(run, capfd):
    prefill(composed("prefill", "prefill.tokens=[0]", *TWO))
    printed = capfd.readouterr().out
    assert re.findall(r"^ *(\w+) +refusal +0 +0 ", printed, re.MULTILINE) == ["local", "tiny_dev_seen", "all"]
    found = [each.harmful for each in points(run.folder, "benchmark") if each.tokens == 0 and not each.alone]
    assert re.search(rf"all .* {sum(each.n for each in found)} +{sum(each.unscored for each in found)}  ", printed)


def test_a_judge_that_fails_stops_no_other(run, capfd):
    dead = ["judge=[pair,refusal]", "judge.pair.base_url=http://127.0.0.1:9/v1", "judge.pair.model=any"]
    with pytest.raises(
        UserError, match=r"^judge\.pair: http\S+ cannot be reached.*All else is done, and the same comm"
    ):
        prefill(composed("prefill", "prefill.tokens=[0,4]", *dead))
    assert len(answers(run, 4)) == 3 and folder_of(run).has_scores("local-4-continued", run.step, "refusal")
    assert re.search(r"local +refusal +4 ", capfd.readouterr().out)


def test_other_answers_are_begun_afresh(run):
    before, asked = answers(run, 3), Path("ask.json").read_text()
    try:
        Path("ask.json").write_text(json.dumps([{**each, "harmful": "Run and hide."} for each in ASKED]))
        prefill(composed("prefill", "prefill.tokens=[3]"))
        assert all("Run and hide.".startswith(row.started) for row in answers(run, 3))
        # nothing of the others stands beside them, though it is kept
        assert {each.tokens for each in points(run.folder, "benchmark") if each.benchmark == "local"} == {3}
        assert folder_of(run).has_responses("local-40", run.step)
    finally:
        Path("ask.json").write_text(asked)
    prefill(composed("prefill", "prefill.tokens=[3]"))
    assert answers(run, 3) == before
    assert {0, 3, 40} <= {each.tokens for each in points(run.folder, "benchmark") if each.benchmark == "local"}


def test_a_changed_setting_makes_answers_afresh(run, monkeypatch):
    made, real = [], generating._batch
    monkeypatch.setattr(generating, "_batch", lambda *arguments: made.append(0) or real(*arguments))
    for batch_size in (2, 2, 3):
        prefill(composed("prefill", "prefill.tokens=[7]", f"evaluate.batch_size={batch_size}"))
    assert len(made) == 2 + 0 + 1


def test_answers_of_another_run_are_those_that_are_harmful_there(run):
    other = RunDir(Path("elsewhere") / "seed7-abc")
    rows = run.folder.read_responses("local", run.step)
    harmful = ["Take the map.", "No.", "Run."]
    other.create("judge: {refusal: {outcomes: {refusal: refusal, answer: harmful}}}", {})
    other.write_responses("local", 3, [replace(r, response=h) for r, h in zip(rows, harmful, strict=True)])
    scores = run.folder.read_scores("local", run.step, "refusal")
    labels = ["answer", "refusal", "answer"]
    other.write_scores(
        "local", 3, "refusal", [replace(s, score=1.0, label=label) for s, label in zip(scores, labels, strict=True)]
    )
    with pytest.raises(UserError, match="is no folder of a finished run"):
        prefill(composed("prefill", f"prefill.source={other.path}"))
    other.finish()
    prefill(composed("prefill", "prefill.tokens=[40]", f"prefill.source={other.path}"))
    made = RunDir(run.folder.path / "prefill" / "seed7-abc").read_responses("local-40", run.step)
    assert [(row.prompt, row.started) for row in made] == [
        (ASKED[0]["ask"], "Take the map."),
        (ASKED[2]["ask"], "Run."),
    ]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["prefill.tokens=[]"], "prefill.tokens is empty"),
        (["benchmark.local.kind=safe"], r"benchmark=\[local\] has none of the kind toxic"),
        (
            ["judge.refusal.outcomes={refusal: refusal, answer: null}"],
            r"judge=\[refusal\] says of local what is harmful",
        ),
        (  # the one that does has no key, and is left out
            ["judge=[refusal,moderation]", "judge.refusal.outcomes={refusal: refusal, answer: null}"],
            r"judge=\[refusal\] says of local what is harmful",
        ),
        (["benchmark.local.source.fields={prompt: ask, harmful: null}"], "none of local brings harmful answers"),
    ],
)
def test_mistakes(run, overrides, sentence, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match=sentence):
        prefill(composed("prefill", *overrides))


@torch.no_grad()
def test_a_server_answers_as_the_model_in_memory_does(run, api, monkeypatch):
    tuned, tokenizer = load_tuned(run), run.base.tokenizer
    base = run.base.load(run.device).eval()

    def complete(request):
        ids, new = request["prompt"], []
        model = tuned if request["model"] == "tuned" else base
        while len(new) < request["max_tokens"]:
            new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
            if new[-1] == tokenizer.eos_token_id:
                break
        finish = "stop" if new[-1] == tokenizer.eos_token_id else "length"
        text = tokenizer.decode(new, skip_special_tokens=True)
        return {"id": "1", "model": "m", "choices": [{"index": 0, "text": text, "finish_reason": finish}]}

    api.answers["/v1/completions"] = complete
    models = [{"id": "tuned", "root": str(run.folder.adapter.absolute())}, {"id": "model", "root": "model"}]
    api.answers["/v1/models"] = lambda request: {"object": "list", "data": models}
    prefill(composed("prefill", "prefill.tokens=[6]"))
    want = answers(run, 6)
    monkeypatch.setattr("tasft.execute.load_tuned", lambda run: pytest.fail("no model is needed"))
    server = [f"evaluate.server.base_url={api.base_url}", "evaluate.server.model=tuned"]
    prefill(composed("prefill", "prefill.tokens=[6]", *server))
    assert answers(run, 6) == want
    assert folder_of(run).read_settings("local-6", run.step)["server"]["base_url"] == api.base_url
