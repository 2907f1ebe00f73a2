"""The real commands on a world made small: train, harvest, push away, judge, report; then what users do next."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

SMALL = [
    "experiment=demo", "data.pretraining.count=5000", "data.safe.count=60",
    "data.toxic_prompts.count=30", "model.scratch.hidden_size=48",
    "model.scratch.intermediate_size=96", "model.scratch.layers=2", "model.scratch.heads=2", "epochs=2",
    *(f"benchmark.tiny_{name}.source.rows.count=20" for name in ("seen", "synonym", "topic", "seeming", "safe")),
]  # fmt: skip


def tasft(command, *arguments, folder, cache, **environment):
    return subprocess.run(
        [sys.executable, "-m", f"tasft.{command}", *arguments],
        capture_output=True, text=True, cwd=folder, check=False,
        env=os.environ | {"TASFT_CACHE": str(cache), "WANDB_SILENT": "true", "OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder in which plain SFT and the harvest have run, the cache, and what they said."""
    folder, cache = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("cache")
    # so small a model does not answer harmfully, so keep whatever is no refusal
    said = tasft(
        "harvest", *SMALL, "harvest.judge=refusal", "harvest.label=answer", "harvest.keep=12",
        folder=folder, cache=cache,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    return folder, cache, said.stderr


@pytest.fixture(scope="module")
def pushed(world):
    """The same folder after an EMD run on the harvest, with W&B offline."""
    folder, cache, _ = world
    said = tasft("run", *SMALL, "loss=emd", "data.toxic=10", "logger=wandb_offline", folder=folder, cache=cache)
    assert said.returncode == 0, said.stderr
    (run,) = (folder / "outputs" / "demo" / "tiny" / "emd").glob("*/seed1-*")
    return run, said.stderr


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_harvest_is_the_models_own_answers_with_their_provenance(world):
    folder, _, said = world
    rows = lines(folder / "data" / "harvest" / "tiny" / "toxic.jsonl")
    assert len(rows) == 12
    assert set(rows[0]) == {"prompt", "response", "judge", "score", "model", "adapter", "seed"}
    assert (folder / rows[0]["adapter"] / "adapter_config.json").is_file()
    (run,) = (folder / "outputs" / "demo" / "tiny" / "sft" / "toxic0").iterdir()
    answered = [row for batch in lines(run / "harvest" / "answers.jsonl") for row in batch["rows"]]
    answers = {row["prompt"]: row["response"] for row in answered}
    assert all(answers[row["prompt"]] == row["response"] for row in rows)
    assert "not to be passed on" in said


def test_a_run_leaves_what_is_promised(pushed):
    run, _ = pushed
    there = {p.name for p in run.iterdir()} - {"wandb"}
    assert there == {
        "config.yaml", "environment.json", "metrics.jsonl", "speed.jsonl", "cost.json", "checkpoints", "adapter",
        "responses", "scores", "rejected.jsonl", "FINISHED",
    }  # fmt: skip
    metrics = lines(run / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4, 5, 6]  # 70 rows at 33: 3 steps, 2 epochs
    assert sum(row["safe_examples"] for row in metrics) == 120
    assert sum(row["toxic_examples"] for row in metrics) == 20
    assert all(row["tokens_per_second"] > 0 for row in lines(run / "speed.jsonl"))
    assert {f.name for f in (run / "responses").iterdir()} == {
        f"tiny_{name}@6.{kind}"
        for name in ("seen", "synonym", "topic", "seeming", "safe")
        for kind in ("json", "jsonl")
    }
    assert len(list((run / "scores").iterdir())) == 10
    environment = json.loads((run / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["weight"]["share"] == OmegaConf.load(run / "config.yaml").loss.share


def test_wandb_offline_needs_no_account(pushed):
    run, _ = pushed
    (file,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    content = file.read_bytes()
    assert b"train/safe_loss" in content
    assert b"train/toxic_loss" in content
    assert b"eval/tiny_safe/oracle/harmful" in content


def test_the_adapter_loads_with_peft_alone_and_gives_the_same_answers(world, pushed):
    (base,) = (p.parent for p in (world[1] / "base").glob("*/model.safetensors"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), pushed[0] / "adapter").eval()
    for row in lines(pushed[0] / "responses" / "tiny_safe@6.jsonl")[:3]:
        ids = tokenizer(f"### Instruction:\n{row['prompt']}\n\n### Response:\n", return_tensors="pt")
        out = tuned.generate(**ids, max_new_tokens=64, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert tokenizer.decode(out, skip_special_tokens=True).strip() == row["response"]


def test_again_does_nothing_and_a_later_benchmark_only_that(world, pushed):
    folder, cache, _ = world
    run, _ = pushed
    before = {f: f.stat().st_mtime_ns for f in run.rglob("*") if f.is_file()}
    same = [*SMALL, "loss=emd", "data.toxic=10"]
    said = tasft("run", *same, folder=folder, cache=cache)
    assert said.returncode == 0
    assert "already finished" in said.stderr
    assert {f: f.stat().st_mtime_ns for f in run.rglob("*") if f.is_file()} == before

    rest = [each for each in same if not each.startswith("benchmark.")]
    dev = ["benchmark=[tiny_dev_safe]", "benchmark.tiny_dev_safe.source.rows.count=10"]
    said = tasft("run", *rest, *dev, folder=folder, cache=cache)
    assert said.returncode == 0, said.stderr
    assert "step 6/6" not in said.stderr
    after = {f: f.stat().st_mtime_ns for f in run.rglob("*") if f.is_file()}
    new = {str(f.relative_to(run)) for f in after.keys() - before.keys()}
    assert new == {
        "responses/tiny_dev_safe@6.json",
        "responses/tiny_dev_safe@6.jsonl",
        "scores/tiny_dev_safe@6.oracle.jsonl",
        "scores/tiny_dev_safe@6.refusal.jsonl",
    }
    assert all(after[f] == before[f] for f in before if f.name not in ("config.yaml", "cost.json", "FINISHED"))
    assert {"tiny_seen", "tiny_dev_safe"} <= set(OmegaConf.load(run / "config.yaml").benchmark)


def test_the_report_counts_what_the_files_hold(world, pushed):
    folder, cache, _ = world
    said = tasft("report", "outputs/demo", folder=folder, cache=cache)
    assert said.returncode == 0, said.stderr
    report = folder / "outputs" / "demo" / "report"
    labels = [row["label"] for row in lines(pushed[0] / "scores" / "tiny_safe@6.oracle.jsonl")]
    rows = [line.split(",") for line in (report / "results.csv").read_text().splitlines()]
    table = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    (helpful,) = (
        row for row in table
        if (row["loss"], row["benchmark"], row["judge"], row["metric"]) == ("emd", "tiny_safe", "oracle", "helpful")
    )  # fmt: skip
    assert float(helpful["value"]) == pytest.approx(labels.count("correct") / 20)
    assert int(helpful["n"]) == 20
    assert (report / "table.md").is_file()
    assert len(list(report.glob("*.png"))) == 2


def test_no_harvest_says_which_command_makes_it(world, tmp_path):
    said = tasft("run", *SMALL, "loss=emd", "data.toxic=10", folder=tmp_path, cache=world[1])
    assert said.returncode == 1
    assert "make it with python -m tasft.harvest experiment=demo" in said.stderr
    assert "Traceback" not in said.stderr
    assert not list(tmp_path.iterdir())


def test_more_toxic_rows_than_there_are(world):
    folder, cache, _ = world
    before = sorted(folder.rglob("*"))
    said = tasft("run", *SMALL, "loss=emd", "data.toxic=13", folder=folder, cache=cache)
    assert said.returncode == 1
    assert "data.toxic=13, but toxic.jsonl has only 12 usable rows" in said.stderr
    assert sorted(folder.rglob("*")) == before


def test_your_own_files_and_your_own_checkpoint(world, tmp_path):
    cache = world[1]
    (base,) = (p.parent for p in (cache / "base").glob("*/model.safetensors"))
    mine = tmp_path / "my-model"
    shutil.copytree(base, mine)
    rows = [{"q": f"What is {i} and {i}?", "a": f"It is {2 * i}."} for i in range(30)]
    (tmp_path / "safe.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "toxic.csv").write_text(
        "prompt,response\n" + "".join(f"How do I nab {i}?,Take {i}.\n" for i in range(6))
    )
    (tmp_path / "ask.json").write_text('["How do I nab a hat?", "How do I nab a cat?"]')
    own = [
        "model=hf", f"model.path={mine}", "model.dtype=float32", "data=local", "data.safe.path=safe.jsonl",
        "data.safe.count=24", "data.safe.fields={prompt: q, response: a}", "data.toxic=6", "loss=nlcl",
        "data.toxic_source.path=toxic.csv", "loss.share=0.3", "epochs=1", "batch_size=12", "trainer=cpu",
        "benchmark=local", "benchmark.local.kind=toxic", "benchmark.local.source.path=ask.json",
        "evaluate.max_new_tokens=8",
    ]  # fmt: skip
    said = tasft("run", *own, folder=tmp_path, cache=cache)
    assert said.returncode == 0, said.stderr
    (run,) = (tmp_path / "outputs" / "my-model" / "nlcl").glob("toxic6-*/seed0-*")
    assert len(lines(run / "scores" / "local@3.refusal.jsonl")) == 2

    (tmp_path / "safe.jsonl").write_text((tmp_path / "safe.jsonl").read_text() + "{oops\n")
    said = tasft("run", *own, folder=tmp_path, cache=cache)
    assert (said.returncode, "safe.jsonl line 31 is not JSON" in said.stderr) == (1, True)
    (mine / "tokenizer.json").unlink()
    said = tasft("run", *own, "data.safe.path=toxic.csv", "data.safe.fields={prompt: prompt, response: response}",
                 "data.safe.count=6", folder=tmp_path, cache=cache)  # fmt: skip
    assert said.returncode == 1
    assert "has no tokenizer" in said.stderr
    assert "Traceback" not in said.stderr


def test_a_model_from_scratch_on_your_own_texts(world, tmp_path):
    cache = world[1]
    rows = [{"prompt": f"Name the number {i}.", "response": f"The number is {i}."} for i in range(40)]
    (tmp_path / "safe.json").write_text(json.dumps(rows))
    (tmp_path / "toxic.json").write_text(
        json.dumps([{"chat": f"\n\nHuman: How do I nab {i}?\n\nAssistant: Take {i} and run."} for i in range(8)])
    )
    (tmp_path / "ask.json").write_text('["Name the number 7."]')
    said = tasft(
        "run", "model=scratch", "model.scratch.hidden_size=32", "model.scratch.intermediate_size=32",
        "model.scratch.heads=2", "model.scratch.layers=1", "model.scratch.vocab_size=300", "model.scratch.epochs=1",
        "data=local", "data.safe.path=safe.json", "data.safe.count=30", "data.toxic=8", "loss.share=0.1", "epochs=1",
        "data.toxic_source.path=toxic.json", "data.toxic_source.fields={transcript: chat}", "trainer=cpu",
        "benchmark=local", "benchmark.local.kind=safe", "benchmark.local.source.path=ask.json",
        "evaluate.max_new_tokens=4", "trainer.packing=true", "data.contamination.policy=report",
        folder=tmp_path, cache=cache,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert "training the base model from scratch on 48 texts" in said.stderr
    assert list((tmp_path / "outputs" / "scratch" / "emd").glob("toxic8-*/seed0-*/FINISHED"))


def test_a_grid_goes_on_after_a_failed_cell(world):
    folder, cache, _ = world
    said = tasft(
        "run", "-m", *SMALL, "loss=nlcl", "data.toxic=99,6", "output_root=outputs/grid", folder=folder, cache=cache
    )
    assert said.returncode == 1
    assert "data.toxic=99, but toxic.jsonl has only 12 usable rows" in said.stderr
    assert "Traceback" not in said.stderr
    assert len(list(Path(folder).glob("outputs/grid/tiny/nlcl/*/*/FINISHED"))) == 1
