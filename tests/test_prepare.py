"""A prepared run: what its folder's name depends on, and what stops it before anything is written."""

import json
import math
import subprocess
import sys
import threading
import time
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from transformers import LlamaConfig, LlamaForCausalLM

from tasft import execute as execute_module
from tasft import prepare as prepare_module
from tasft.config import CONF, entry, mistake, register
from tasft.errors import UserError
from tasft.evaluate.generating import Answer
from tasft.execute import execute, nothing_left
from tasft.flagging import Flagged
from tasft.model.scratch import train_tokenizer
from tasft.prepare import prepare
from tasft.result.lock import only_one
from tasft.result.store import read_config


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a small model, rows and prompts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TASFT_CACHE", str(tmp_path / "cache"))
    for name, count in (("safe", 12), ("toxic", 4)):
        rows = [{"prompt": f"{name} {i}?", "response": f"It is {i}."} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "ask.json").write_text('["safe 3?", "safe 4?"]')
    tokenizer = train_tokenizer(["safe toxic It is 1."], 270)
    tokenizer.save_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path / "model")
    return tmp_path


ALL = [
    "model=hf", "model.path=model", "model.dtype=float32", "data=local", "data.safe.path=safe.jsonl",
    "data.safe.count=10", "data.toxic_source.path=toxic.jsonl", "data.toxic=3", "loss=emd", "loss.share=0.1",
    "epochs=1", "batch_size=6", "trainer=cpu", "benchmark=local", "benchmark.local.kind=safe",
    "benchmark.local.source.path=ask.json", "evaluate.max_new_tokens=2", "data.contamination.policy=report",
]  # fmt: skip


def prepared(*overrides):
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return prepare(compose("run", overrides=[*ALL, *overrides]))


def name(*overrides):
    return prepared(*overrides).folder.path.name


def test_what_decides_the_numbers_names_the_folder(project):
    first = name()
    decided = (
        "data.safe.count=9", "data.toxic=2", "loss.share=0.2", "loss=nlcl", "loss=sft", "loss.group=6", "epochs=2",
        "loss.embedding=output", "loss.toxic.reduction=mean", "optimizer.lr=1e-3", "batch_size=5", "seed=1",
        "data.format=short", "data.max_length=256", "model.lora.r=4", "model.dtype=bfloat16", "loss.toxic_eos=true",
    )  # fmt: skip
    names = [name(each) for each in decided]
    assert first not in names
    assert len(set(names)) == len(names)


def test_what_does_not_decide_them_does_not(project):
    (project / "copy.jsonl").write_text((project / "safe.jsonl").read_text())
    free = (
        "trainer.max_tokens=64", "trainer.packing=true", "trainer.checkpoint_every=7", "output_root=elsewhere",
        "data.name=mine", "data.safe.path=copy.jsonl", "model.path=./model", "evaluate.batch_size=1",
        "model.attention=eager", "optimizer.name=other", "benchmark.local.kind=toxic",
    )  # fmt: skip
    assert {name(each) for each in free} == {name()}
    assert name("loss=sft", "loss.share=null", "loss.weight=2") == name("loss=sft", "loss.embedding=output")


def test_content_decides_not_the_path(project):
    first = name()
    (project / "safe.jsonl").write_text((project / "safe.jsonl").read_text().replace("It is 3.", "It is three."))
    changed = name("data.safe.count=12")
    assert changed != name("data.safe.count=12", "data.safe.path=toxic.jsonl", "data.safe.count=4")
    (project / "safe.jsonl").write_text((project / "safe.jsonl").read_text().replace("It is three.", "It is 3."))
    assert name() == first
    model = LlamaForCausalLM.from_pretrained("model")
    model.lm_head.weight.data[0, 0] += 1
    model.save_pretrained("model")
    assert name() != first


def test_a_scratch_models_texts_decide_and_a_harvest_never_enters(project):
    scratch = [
        "model=scratch", "model.path=null", "model.scratch.hidden_size=8", "model.scratch.intermediate_size=8",
        "model.scratch.heads=2", "model.scratch.layers=1", "model.scratch.vocab_size=270",
    ]  # fmt: skip
    with_toxic = prepared(*scratch, "loss=sft")
    assert len(with_toxic.base.texts) == 16
    harvested = project / "data" / "harvest" / "scratch" / "toxic.jsonl"
    harvested.parent.mkdir(parents=True)
    digest = prepared("data.toxic_source.path=null", *scratch, "loss=sft").base.identity[0]
    rows = [{"prompt": f"h {i}?", "response": "Yes.", "model": f"scratch {digest}"} for i in range(3)]
    harvested.write_text("".join(json.dumps(row) + "\n" for row in rows))
    without = ["data.toxic_source.path=null", *scratch]
    sft, emd = prepared(*without, "loss=sft"), prepared(*without)
    assert len(sft.base.texts) == len(emd.base.texts) == 12
    assert sft.base.identity == emd.base.identity != with_toxic.base.identity
    assert sft.folder.path.name != with_toxic.folder.path.name
    with pytest.raises(UserError, match=r"is the harvest of scratch \w+, not of scratch \w+"):
        prepared(*without, "data.safe.path=toxic.jsonl", "data.safe.count=4")  # another base model of the same name
    harvested.write_text(harvested.read_text().replace(f'"scratch {digest}"', '"other"'))
    with pytest.raises(UserError, match="is the harvest of other, not of scratch"):
        prepared(*without)


def prompts_of(run, kind):
    return [example.prompt for example in run.mixture[kind].examples]


MIXED = [
    "data.safe_answers_source.path=refused.jsonl", "data.contrastive_source.path=seeming.jsonl",
    "data.harmful_source.path=toxic.jsonl",
]  # fmt: skip


@pytest.fixture
def mixed(project):
    for name in ("refused", "seeming"):
        rows = [{"prompt": f"{name} {i}?", "response": f"{name}."} for i in range(8)]
        (project / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_what_is_mixed_in_changes_no_other_part_and_is_nested(mixed):
    plain = prepared(*MIXED)
    few = prepared(*MIXED, "data.safe_answers=2", "data.contrastive=3")
    more = prepared(*MIXED, "data.safe_answers=5", "data.contrastive=3")
    for kind in ("safe", "toxic"):
        assert prompts_of(plain, kind) == prompts_of(few, kind) == prompts_of(more, kind)
    assert prompts_of(more, "safe_answers")[:2] == prompts_of(few, "safe_answers")
    assert all(prompt.startswith("refused") for prompt in prompts_of(more, "safe_answers"))
    assert all(prompt.startswith("seeming") for prompt in prompts_of(more, "contrastive"))
    assert [tokens.toxic for part in more.mixture.values() for tokens in part.tokens] == [False] * 18 + [True] * 3
    assert few.folder.path.parent.name == f"toxic3-weight{few.weight.weight:.6g}-safe_answers2-contrastive3"
    assert few.weight.share == pytest.approx(0.1)
    assert few.weight.weight > plain.weight.weight  # toxic rows are rarer, and the share is kept


def test_no_row_is_imitated_and_pushed_away(mixed):
    run = prepared(*MIXED, "data.harmful=2", "data.toxic=2")
    assert sorted(prompts_of(run, "harmful") + prompts_of(run, "toxic")) == [f"toxic {i}?" for i in range(4)]
    with pytest.raises(UserError, match=r"has only 2 usable rows \(rejected: 2 already among data\.harmful"):
        prepared(*MIXED, "data.harmful=2", "data.toxic=3")


def test_contrastive_rows_are_found_where_the_command_leaves_them(mixed, project):
    kept = project / "data" / "contrastive" / "local" / "pairs.jsonl"
    kept.parent.mkdir(parents=True)
    (project / "seeming.jsonl").rename(kept)
    assert len(prompts_of(prepared("data.contrastive=8"), "contrastive")) == 8


def test_prompts_of_a_benchmark_are_not_trained_on(project):
    asked = ["data.contamination.policy=drop", "data.contamination.similarity=1"]
    run = prepared(*asked)
    assert sorted(prompts_of(run, "safe")) == sorted(f"safe {i}?" for i in range(12) if i not in (3, 4))
    reasons = [each.reason for each in run.mixture["safe"].rejected]
    assert set(reasons) == {"asked by benchmark local"}
    with pytest.raises(UserError, match=r"data\.safe\.count=11, but .* has only 10 usable rows \(rejected: 2 asked by"):
        prepared(*asked, "data.safe.count=11")
    with pytest.raises(UserError, match=r"2 of these prompts are those of benchmarks \(2 local; 0 .* 'safe 3\?'"):
        prepared("data.contamination.policy=refuse", "data.contamination.similarity=1")
    assert {"safe 3?", "safe 4?"} & set(prompts_of(prepared("data.safe.count=12"), "safe"))


def flagging(scores):
    """Stands for the filter: flags the rows whose response is in `scores`."""

    def flag(saft, base, tokens, labelled, device, max_tokens, seed):
        texts = [base.tokenizer.decode(each.input_ids[each.prompt_length :]).strip() for each in tokens]
        found = np.array(
            [next((score for end, score in scores.items() if text.startswith(end)), 0.0) for text in texts]
        )
        return Flagged(found, found > 0, layer=0, k=1, threshold=0.5, why="by hand")

    return flag


FILTERED = [*MIXED, "data.safe.count=12", "data.harmful=4", "saft.threshold=0.5", "data.toxic=2"]


def test_flagged_rows_are_dropped_or_become_toxic(mixed, project, monkeypatch):
    rows = [{"prompt": f"toxic {i}?", "response": f"Bad {i}."} for i in range(4)]
    (project / "toxic.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(prepare_module, "flag", flagging({"Bad 0": 3.0, "Bad 1": 1.0, "Bad 2": 2.0, "It is 7": 0.9}))
    plain = prepared(*FILTERED, "loss=sft")
    dropped = prepared(*FILTERED, "loss=sft", "data.filter=saft")
    assert prompts_of(dropped, "harmful") == ["toxic 3?"]
    assert prompts_of(dropped, "safe") == [p for p in prompts_of(plain, "safe") if p != "safe 7?"]
    assert dropped.folder.path.parent.name == "toxic0-harmful4-saft"
    pushed = prepared(*FILTERED, "data.filter=saft_to_toxic")
    assert prompts_of(pushed, "harmful") == prompts_of(dropped, "harmful")
    assert prompts_of(pushed, "toxic") == ["toxic 0?", "toxic 2?"]  # the highest scores first
    assert [tokens.toxic for tokens in pushed.mixture["toxic"].tokens] == [True, True]
    imitated = len(prompts_of(pushed, "safe")) + 1
    assert pushed.weight.share == pytest.approx(0.1)
    assert pushed.parts.objective.weight == pushed.config.loss.weight == pushed.weight.weight
    group = 1 - math.comb(imitated, 3) / math.comb(imitated + 2, 3)
    assert pushed.weight.weight == pytest.approx(0.1 / group)
    # what is pushed away from is not among the rows left out, and is under the licences of the other parts
    assert [each.source for each in pushed.mixture["harmful"].rejected] == ["toxic.jsonl line 2"]
    assert set(pushed.licences) == {"safe", "harmful"}
    with pytest.raises(UserError, match=r"data\.toxic=5, but data\.filter=saft_to_toxic flags only 4 rows"):
        prepared(*FILTERED, "data.filter=saft_to_toxic", "data.toxic=5")


@pytest.mark.parametrize("given", [("loss=sft", "data.filter=saft"), ("data.filter=saft_to_toxic",)])
def test_a_filter_that_leaves_nothing_to_imitate_is_a_mistake(given, mixed, monkeypatch):
    monkeypatch.setattr(prepare_module, "flag", flagging({"": 1.0}))
    with pytest.raises(UserError, match=r"flags all 16 rows, so that none is left to imitate: flag fewer \(saft"):
        prepared(*FILTERED, *given)


def test_answers_to_other_prompts_are_given_anew(project):
    run = prepared()
    folder = execute(run)
    first = folder.read_responses("local", run.step)
    (project / "ask.json").write_text('["safe 3?", "safe 5?", "safe 6?"]')
    again = prepared()
    assert execute(again).path == folder.path
    now = folder.read_responses("local", run.step)
    assert [row.prompt for row in now] == ["safe 3?", "safe 5?", "safe 6?"]
    assert now[0] == first[0]
    assert len(folder.read_scores("local", run.step, "refusal")) == 3


def test_a_judge_with_a_bad_day_or_other_settings_is_asked_again(project, api, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    judged = [
        "judge=[refusal,moderation]",
        f"judge.moderation.base_url={api.base_url}",
        "benchmark.local.judges=[refusal,moderation]",
    ]
    monkeypatch.setattr(execute_module, "generate", lambda *_: [Answer("So.", False), Answer("Well.", False)])
    api.mishaps, api.share = ("500",), 1.0
    folder = execute(prepared(*judged, "+judge.moderation.attempts=1"))

    def labels():
        return [row.label for row in folder.read_scores("local", folder.responses_present()[0][1], "moderation")]

    assert folder.finished and labels() == [None, None]
    assert not nothing_left(prepared(*judged, "+judge.moderation.attempts=1"))  # it may have a better one
    api.mishaps = ()
    execute(prepared(*judged))
    assert labels() == ["harmless", "harmless"]
    asked = (project / "ask.json").read_text()
    (project / "ask.json").write_text('["safe 3?", "safe 5?"]')
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):  # while the model is loaded
        killed.setattr(execute_module, "load_tuned", Mock(side_effect=KeyboardInterrupt))
        execute(prepared(*judged, "judge.moderation.threshold=0"))
    (project / "ask.json").write_text(asked)
    assert labels() == ["harmful", "harmful"]
    execute(prepared(*judged))
    assert labels() == ["harmless", "harmless"]  # not those of another threshold
    execute(prepared(*judged, "judge.moderation.threshold=0", "judge.moderation.concurrency=1"))
    assert labels() == ["harmful", "harmful"]
    execute(prepared(*judged, "judge.moderation.threshold=0"))
    assert labels() == ["harmful", "harmful"]
    assert set(api.answered.values()) == {1}


def test_without_a_key_another_threshold_labels_the_scores_that_are_there(project, api, monkeypatch, caplog):
    monkeypatch.setattr("tasft.remote.OPENAI", api.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    judged = ["judge=[refusal,moderation]", "benchmark.local.judges=[refusal,moderation]"]
    monkeypatch.setattr(execute_module, "generate", lambda *_: [Answer("So.", False), Answer("", False)])
    folder = execute(prepared(*judged))
    step = folder.responses_present()[0][1]
    before = folder.read_scores("local", step, "moderation")
    assert [row.label for row in before] == ["harmless", None]
    assert nothing_left(prepared(*judged))  # an empty answer stays unscored: that is no reason to come again
    monkeypatch.delenv("OPENAI_API_KEY")
    assert nothing_left(prepared(*judged))
    strict = [*judged, "judge.moderation.threshold=0.01"]
    assert not nothing_left(prepared(*strict))
    execute(prepared(*strict))
    assert "judge.moderation is left out: judge.moderation needs a key" in caplog.text
    now = folder.read_scores("local", step, "moderation")
    assert [row.label for row in now] == ["harmful", None] and now[0].detail == before[0].detail
    assert read_config(folder.config)["judge"]["moderation"]["threshold"] == 0.01
    assert nothing_left(prepared(*strict)) and api.asked.total() == 1


def test_other_generation_settings_are_refused_not_ignored(project):
    execute(prepared())
    with pytest.raises(UserError, match=r"evaluate\.max_new_tokens is 2 there, 3 here"):
        execute(prepared("evaluate.max_new_tokens=3"))


def test_afresh_keeps_the_old_run_until_the_new_one_is_finished(project, monkeypatch):
    run = prepared()
    folder = execute(run)
    metrics = folder.metrics.read_text()

    def broken(*_):
        raise UserError("no weights today")

    with monkeypatch.context() as patched:
        patched.setattr(execute_module, "_train", broken)
        with pytest.raises(UserError, match="no weights today"):
            execute(prepared("resume=false"))
    (aside,) = folder.path.parent.glob(".*.replaced")
    assert (aside / "metrics.jsonl").read_text() == metrics
    execute(prepared("resume=false"))
    assert folder.finished
    assert folder.metrics.read_text() == metrics
    assert not list(folder.path.parent.glob(".*"))


def test_scores_of_other_settings_are_kept_of_no_benchmark(project):
    judged = ("judge=[refusal,text]",)
    folder = execute(prepared(*judged))
    (_, step, _) = next(each for each in folder.scores_present() if each[2] == "text")
    execute(prepared(*judged, "~benchmark.local", "judge.text.min_letters=5"))  # config.yaml has the new settings now
    assert not folder.has_scores("local", step, "text") and folder.has_scores("local", step, "refusal")
    execute(prepared(*judged, "judge.text.min_letters=5"))
    assert folder.has_scores("local", step, "text")


def test_afresh_twice_the_first_run_still_waits(project, monkeypatch):
    folder = execute(prepared())
    kept = folder.metrics.read_text()
    run = prepared("resume=false", "optimizer.lr=1e-9")
    assert run.folder.path != folder.path  # another run: nothing of this one is put aside
    monkeypatch.setattr("tasft.execute._train", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            execute(prepared("resume=false"))
    (aside,) = folder.path.parent.glob(".*.replaced")
    assert (aside / "metrics.jsonl").read_text() == kept and (aside / "FINISHED").exists()


def killed(run, *_):
    run.folder.path.mkdir(parents=True, exist_ok=True)
    raise KeyboardInterrupt


def test_a_key_in_the_place_of_its_name_reaches_no_file(project):
    execute(prepared())
    server = ("evaluate.server.base_url=http://127.0.0.1:9/v1", "evaluate.server.model=x")
    with pytest.raises(UserError, match=r"evaluate\.server\.key should be the name") as caught:
        execute(prepared(*server, "evaluate.server.key=sk-secret123"))
    assert "sk-secret123" not in str(caught.value)
    assert not [file for file in project.rglob("*") if file.is_file() and b"sk-secret123" in file.read_bytes()]


def test_two_processes_do_not_share_a_run(project):
    run = prepared()
    with only_one(run.folder.path), pytest.raises(UserError, match="another process is at work on outputs/model/emd"):
        execute(run)
    assert not run.folder.path.exists()
    holding = threading.Event()

    def hold():
        with only_one(run.folder.path):
            holding.set()
            time.sleep(0.5)
            holding.clear()

    threading.Thread(target=hold).start()
    holding.wait()
    assert execute(prepared(), wait=True).finished and not holding.is_set()


def test_on_a_disk_that_fills_up_nothing_is_lost(project):
    disk = project / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", disk], check=False).returncode:
        pytest.skip("a small disk is mounted as root")
    try:
        with pytest.raises(Exception, match=r"(?i)no space left on device") as caught:
            execute(prepared("output_root=disk"))
        assert "make room" in mistake(caught.value)
        subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
        folder = execute(prepared("output_root=disk"))
        assert folder.finished and folder.metrics.read_text() == execute(prepared()).metrics.read_text()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_threads_of_a_run_are_not_those_of_the_next(project):
    before = torch.get_num_threads()
    prepared("trainer.threads=3")
    assert torch.get_num_threads() == 3
    prepared()
    assert torch.get_num_threads() == before


def test_how_auto_is_set_is_nothing_to_a_run_without_it(project):
    execute(prepared())
    assert execute(prepared("auto.target=77")).finished


def test_without_git_there_is_no_commit(project, monkeypatch):
    monkeypatch.setenv("PATH", "")
    folder = execute(prepared())
    assert json.loads(folder.environment.read_text())["commit"] is None


LATE = {
    "loss.toxic.reduction=avg": "a loss's reduction is 'avg'; set it to 'sum' or 'mean'",
    "+optimizer.factory.betaz=3": "optimizer.factory does not work",
    "+loss.toxic.foo=3": "loss.toxic does not work",
    "loss.toxic._target_=tasft.loss.emd.typo": "No module named 'tasft.loss.emd.typo'",
    "loss=npo loss.reference=false loss.share=0.1": "set reference: true in its yaml",
    "model=scratch": "model.path=model, but this model is trained from scratch",
    "loss.toxic=null": "only sft has no toxic term",
    "model.name=../../escape": "model.name '../../escape' cannot name a file",
    "logger=wandb": "logger=wandb needs an account",
    "benchmark=[]": None,
}


@pytest.mark.parametrize("override", LATE)
def test_what_used_to_be_noticed_late_is_noticed_first(override, project, monkeypatch, capfd):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(project))
    from tasft.cell import run_cell

    rest = [each for each in ALL if not (override == "benchmark=[]" and each.startswith("benchmark"))]
    monkeypatch.setattr(sys, "argv", ["tasft.run", *rest, *override.split()])
    code, said = entry(run_cell, "run"), capfd.readouterr().err
    if LATE[override] is None:
        assert code == 0
        return
    assert (code, LATE[override] in said) == (1, True), said
    assert "Traceback" not in said
    assert not (project / "outputs").exists()


def test_a_mistake_in_a_grid_leaves_nothing_behind(project, monkeypatch, capfd):
    from tasft.cell import run_cell

    monkeypatch.setattr(sys, "argv", ["tasft.run", "-m", *ALL, "seed=-1,-2"])
    before = sorted(project.rglob("*"))
    assert entry(run_cell, "run") == 1
    assert "seed=-1: it should be greater than or equal to 0" in capfd.readouterr().err
    assert sorted(project.rglob("*")) == before


def test_pairs_are_toxic_rows_of_two_answers(project):
    rows = [{"prompt": f"pair {i}?", "chosen": f"No {i}.", "rejected": f"Yes {i}."} for i in range(4)]
    rows[1]["rejected"] = rows[1]["chosen"]
    (project / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = prepared("loss=dpo", "data.pairs_source.path=pairs.jsonl", "data.toxic=2", "data.toxic_source.path=null")
    assert run.folder.path.parent.name.startswith("toxic2-weight")
    tokens = run.mixture["toxic"].tokens
    text = [[run.base.tokenizer.decode(half.input_ids[half.prompt_length :]) for half in t.halves] for t in tokens]
    eos = run.base.tokenizer.eos_token
    assert all(chosen.startswith("No ") and rejected.startswith("Yes ") for chosen, rejected in text)
    assert all(each.endswith("." + eos) for pair in text for each in pair)
    assert all(t.toxic and t.rejected.input_ids[: t.prompt_length] == t.input_ids[: t.prompt_length] for t in tokens)
    with pytest.raises(UserError, match=r"only 3 usable rows \(rejected: 1 chosen and rejected are the same"):
        prepared("loss=dpo", "data.pairs_source.path=pairs.jsonl", "data.toxic=4")
    execute(run)
    assert run.folder.finished


def test_a_reference_computed_before_is_the_same_run(project):
    first = execute(prepared("loss=npo", "loss.share=0.01"))
    metrics = [row["toxic_loss"] for row in first.read_metrics()]
    again = prepared("loss=npo", "loss.share=0.01", "loss.precompute_reference=true", "resume=false")
    assert again.folder.path == first.path
    assert [row["toxic_loss"] for row in execute(again).read_metrics()] == pytest.approx(metrics, rel=1e-5)
    assert len(list((project / "cache" / "reference").glob("*.npy"))) == 1


def test_auto_runs_plain_sft_and_says_each_steps_lambda(project, monkeypatch):
    from tasft.cell import run_cell

    monkeypatch.setattr(sys, "argv", ["tasft.run", *ALL[:-1], "loss.share=null", "loss.weight=auto", "epochs=3"])
    assert entry(run_cell, "run") == 0
    (auto,) = (project / "outputs" / "model" / "emd" / "toxic3-weightauto").glob("seed0-*/FINISHED")
    weights = [json.loads(line)["weight"] for line in (auto.parent / "metrics.jsonl").read_text().splitlines()]
    assert len(set(weights)) > 2
    assert len(list((project / "outputs" / "model" / "sft" / "toxic0").glob("seed0-*/FINISHED"))) == 1
    assert name("loss.share=null", "loss.weight=auto") != name("loss.share=null", "loss.weight=auto", "auto.target=9")
