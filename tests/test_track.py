"""What W&B's real client sends: to a stand-in server on this machine, and to offline files."""

import csv
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import wandb
from lightning.pytorch.utilities import rank_zero_only

from tasft.cell import run_cell
from tasft.config import checked, entry
from tasft.errors import UserError
from tasft.execute import execute
from tasft.prepare import prepare
from tasft.result.rows import ResponseRow, ScoreRow
from tasft.result.series import curves, final
from tasft.result.store import RunDir
from tasft.result.table import run_table
from tasft.track import Tracker, answers, check, lacking, spread, tags, track_stage, training_rows
from tests.small import ASKED, SMALL, composed, lay_out
from tests.wandb_server import KEY, WandbServer

PUSHED = [
    "loss=emd", "data.toxic=4", "data.toxic_source.path=toxic.jsonl", "loss.share=0.1",
    "trainer.checkpoint_every=2", "evaluate.every_n_steps=4",
]  # fmt: skip
TOLD = [
    "logger=wandb", "logger.tags=[mine]", "logger.notes=why", "evaluate.every_n_steps=2", "evaluate.at_start=true",
]  # fmt: skip
STEPS = 6  # 14 rows at 6, two epochs
SECRET = "sk-not-to-be-sent-0123456789"


class Killed(Exception):
    pass


def run(*overrides):
    return execute(prepare(composed("run", *PUSHED, *overrides)))


def rows(folder):
    """What metrics.jsonl and speed.jsonl hold of each step, as sent."""
    return {step: {k: pytest.approx(v) for k, v in row.items()} for step, row in training_rows(folder).items()}


def trained(history):
    """The training rows among those of a W&B run, as (x axis, row)."""
    return [(row["step"], {k: row[k] for k in row if k.startswith("train/")}) for row in history if "train/loss" in row]


def evaluated(history):
    """Step -> the rates among the rows, each sent once."""
    found = {}
    for row in history:
        for key in row:
            if key.startswith("eval/"):
                assert key not in found.setdefault(row["step"], {}), "sent twice"
                found[row["step"]][key] = row[key]
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the small model, W&B's environment of its own, and no account but the stand-in's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("tracked")
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        for name, value in {
            "HOME": folder, "TASFT_CACHE": folder / "cache", "WANDB_API_KEY": KEY, "OPENAI_API_KEY": SECRET,
            "WANDB_CONFIG_DIR": folder / "settings", "WANDB_CACHE_DIR": folder / "wandb-cache",
            "WANDB_DATA_DIR": folder / "wandb-data", "WANDB_ERROR_REPORTING": "false",
        }.items():  # fmt: skip
            patch.setenv(name, str(value))
        patch.chdir(folder)
        lay_out(folder)
        yield folder, patch
        wandb.teardown()


@pytest.fixture(scope="module")
def server(place):
    wandb.teardown()
    served = WandbServer()
    place[1].setenv("WANDB_BASE_URL", served.url)
    yield served
    served.stop()


@pytest.fixture(scope="module")
def story(server):
    """A run that dies after step 3, goes on from the checkpoint of step 2, and is judged again when it is finished.

    Its folder, and what the server had of it at each of the three ends.
    """
    real, had = RunDir.append_speed, []

    def dying(self, row):
        real(self, row)
        if row["step"] == 4:
            raise Killed

    def note(folder):
        (run_id,) = (key for key in server.runs if key.startswith(folder.path.name))
        had.append(json.loads(json.dumps(server.runs[run_id])))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDir, "append_speed", dying)
        with pytest.raises(Killed):
            run(*TOLD)
    folder = RunDir(next(Path("outputs").glob("*/emd/*/seed0-*")))
    note(folder)
    assert run(*TOLD).path == folder.path
    note(folder)
    finished = rows(folder), run_table(folder).rows
    run(*TOLD, "judge=[refusal,text]")
    note(folder)
    return folder, had, finished


def test_names_and_tags_say_what_the_run_is(story, server):
    folder, (*_, run), _ = story
    assert run["displayName"] == folder.path.relative_to("outputs").as_posix()
    weight = f"weight={json.loads(run['config'])['cell']['value']['weight']:.4g}"
    assert run["tags"] == ["model", "emd", "toxic=4", weight, "share=0.1", "seed=0", "mine"]
    assert (run["groupName"], run["jobType"], run["project"], run["notes"]) == ("model", "train", "tasft", "why")
    config = {key: each["value"] for key, each in json.loads(run["config"]).items()}
    assert config["optimizer"]["lr"] == 0.03 and config["data"]["toxic_source"]["path"] == "toxic.jsonl"
    assert config["environment"]["base"] == json.loads(folder.environment.read_text())["base"]
    assert {key: config["cell"][key] for key in ("model", "loss", "toxic", "seed")} == {
        "model": "model", "loss": "emd", "toxic": 4, "seed": 0,
    }  # fmt: skip
    axes = {each["2"]: each["5"] for each in config["_wandb"]["m"] if "2" in each}
    assert set(axes) == {"train/*", "eval/*"}  # both over the same metric, which is
    assert {config["_wandb"]["m"][place - 1]["1"] for place in axes.values()} == {"step"}


def test_a_resumed_run_is_one_w_and_b_run_with_each_step_once(story):
    _, (died, resumed, _), (files, _) = story
    assert [step for step, _ in trained(died["history"])] == [1, 2, 3] and died["exitcode"] == 1
    assert resumed["name"] == died["name"] and (resumed["sessions"], resumed["exitcode"]) == (2, 0)
    sent = trained(resumed["history"])
    assert [step for step, _ in sent] == [*range(1, STEPS + 1)]
    for step, row in sent:  # those of step 3 are of the first time, and repeat but for the clock
        assert {k: v for k, v in row.items() if step != 3 or k not in ("train/seconds", "train/tokens_per_second")} == {
            k: v for k, v in files[step].items() if step != 3 or k not in ("train/seconds", "train/tokens_per_second")
        }


def test_rates_are_those_of_the_report_over_steps_and_at_the_end(story):
    folder, (_, resumed, judged), (_, measured) = story
    assert evaluated(resumed["history"]) == curves(measured)
    assert list(curves(measured)) == [0, 2, 4, STEPS]
    summary = resumed["summary"]
    assert {key: summary[key] for key in final(measured)} == final(measured)
    assert summary["final/harm/n"] == len(ASKED) and summary["train/weight"] > 0
    now = run_table(folder).rows  # with a second judge
    assert len(now) > len(measured) and evaluated(judged["history"]) == curves(now)
    assert {key: judged["summary"][key] for key in final(now)} == final(now)
    assert trained(judged["history"]) == trained(resumed["history"]) and judged["jobType"] == "train"


def test_neither_keys_nor_texts_are_sent_unless_asked_for(story, server):
    sent = b"\n".join(server.bodies)
    texts = [row.response for row in story[0].read_responses("local", STEPS)] + [each["ask"] for each in ASKED]
    assert not any(json.dumps(text)[1:-1].encode() in sent for text in texts if len(text) > 4)
    assert SECRET.encode() not in sent and KEY.encode() not in sent
    already, count = len(server.bodies), story[1][-1]["sessions"]
    run(*TOLD, "judge=[refusal,text]")
    assert len([body for body in server.bodies[already:] if b"bucket" in body]) == 0, "nothing is new"
    run(*TOLD, "judge=[refusal,text]", "logger.responses=true", "logger.sample=2")
    now = next(each for key, each in server.runs.items() if key == story[1][-1]["name"])
    assert now["sessions"] == count + 1 and now["history"][-1]["answers"]["nrows"] == 2
    said = b"\n".join(server.bodies[already:])
    assert [each["ask"].encode() in said for each in ASKED] == [True, True, False]


def test_a_run_that_was_made_without_a_logger_is_whole_there_later(server):
    folder = run("seed=1")
    assert not (folder.path / "wandb.json").exists()
    (folder.path / "cost.json").write_text('{"gpu_hours": 0.25}')
    before = {file: file.stat().st_mtime_ns for file in folder.path.rglob("*") if "config" not in file.name}
    tracked = checked(composed("run", *PUSHED, "seed=1", "logger=wandb", "logger.project=other"))
    assert lacking(tracked, folder)
    run("seed=1", "logger=wandb", "logger.project=other")
    assert not lacking(tracked, folder)
    kept = json.loads((folder.path / "wandb.json").read_text())["run"]
    there = server.runs[kept["id"]]
    assert (there["jobType"], there["project"]) == ("evaluate", "other")
    assert there["summary"]["cost/gpu_hours"] == 0.25
    assert trained(there["history"]) == [*rows(folder).items()]
    assert evaluated(there["history"]) == curves(run_table(folder).rows)
    assert kept["url"].endswith(f"/team/other/runs/{kept['id']}")
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_a_network_that_goes_away_costs_a_warning_and_nothing_else(server, caplog):
    real = RunDir.append_speed

    def cutting(self, row):
        real(self, row)
        if row["step"] == 3:
            server.stop()

    quick = ["seed=2", "logger=wandb", "logger.timeout=1", "logger.sample=0"]
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(RunDir, "append_speed", cutting)
        folder = run(*quick)
    said = [each.message for each in caplog.records if "logger gave up" in each.message]
    assert len(said) == 1 and "the same command sends later what is missing" in said[0]
    assert folder.finished and [row["step"] for row in folder.read_metrics()] == [*range(1, STEPS + 1)]
    server.start()
    run("seed=2", "logger=wandb")
    (there,) = (each for key, each in server.runs.items() if key.startswith(folder.path.name))
    assert [step for step, _ in trained(there["history"])] == [*range(1, STEPS + 1)]
    assert evaluated(there["history"]) == curves(run_table(folder).rows)
    assert there["summary"]["final/harm/n"] == len(ASKED)


def test_what_else_is_done_with_a_run_is_a_w_and_b_run_of_its_own(story, server):
    config = prepare(composed("run", *PUSHED, "logger=wandb")).config
    told = {"harvest/judged": 3, "harvest/labels": {"refusal": 1, "answer": 2}}
    for _ in range(2):
        track_stage(config, story[0], "harvest", told)
    harmful = [(0, {"prefill/local/whole/harmful": 0.0}), (4, {"prefill/local/whole/harmful": 0.5})]
    track_stage(config, story[0], "prefill benchmark", {"prefill/local/whole/harmful/4": 0.5}, harmful, "tokens")
    stages = {run["jobType"]: run for run in server.runs.values() if run["jobType"] not in ("train", "evaluate")}
    assert set(stages) == {"harvest", "prefill"} and stages["harvest"]["sessions"] == 1
    assert stages["harvest"]["groupName"] == "model" and stages["harvest"]["summary"]["harvest/judged"] == 3
    assert [(row["tokens"], row["prefill/local/whole/harmful"]) for row in stages["prefill"]["history"]] == [
        (0, 0), (4, 0.5),
    ]  # fmt: skip


def test_a_grid_whose_cells_train_in_two_processes_is_one_w_and_b_run_a_cell(server, monkeypatch):
    grid = ["seed=5,6", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "output_root=grid", *TOLD]
    before = set(server.runs)
    monkeypatch.setattr(sys, "argv", ["tasft.run", "-m", *SMALL, *PUSHED, *grid])
    assert entry(run_cell, "run") == 0
    sent = {key: server.runs[key] for key in set(server.runs) - before}
    assert sorted(run["displayName"].partition("/seed")[2][:1] for run in sent.values()) == ["5", "6"]
    for folder in map(RunDir, Path("grid").glob("*/emd/*/seed*")):
        (run,) = (run for run in sent.values() if run["displayName"] == folder.path.relative_to("grid").as_posix())
        assert trained(run["history"]) == list(rows(folder).items())
        assert sorted(evaluated(run["history"])) == [0, 2, 4, 6]
        assert json.loads(run["config"])["environment"]["value"]["world_size"] == 2


def test_offline_the_last_folder_holds_the_whole_run(place, monkeypatch):
    real = RunDir.append_speed

    def dying(self, row):
        real(self, row)
        if row["step"] == 3:
            raise Killed

    monkeypatch.delenv("WANDB_API_KEY")
    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "append_speed", dying)
        with pytest.raises(Killed):
            run("seed=3", "logger=wandb_offline")
    folder = run("seed=3", "logger=wandb_offline")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder.path / "wandb" / "latest-run")]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    records = [json.loads(line) for line in said.splitlines()]
    of = {kind: [each[kind] for each in records if each["type"] == kind] for kind in ("run", "history", "metric")}
    history = [each["item"] for each in of["history"]]
    assert trained(history) == [*rows(folder).items()] and evaluated(history) == curves(run_table(folder).rows)
    (made,), measured = of["run"], final(run_table(folder).rows)
    assert (made["run_group"], made["job_type"], made["tags"][:2]) == ("model", "train", ["model", "emd"])
    assert made["config"]["update"]["cell"]["seed"] == 3
    axes = {each["glob_name"]: each["step_metric"] for each in of["metric"] if "glob_name" in each}
    assert axes == {"train/*": "step", "eval/*": "step"}
    summary = {
        key: value for each in records if each["type"] == "summary" for key, value in each["summary"]["update"].items()
    }
    assert {key: summary[key] for key in measured} == measured and records[-1]["exit"]["exit_code"] == 0
    assert not any(each["ask"] in said for each in ASKED)
    assert len([*(folder.path / "wandb").glob("offline-run-*")]) == 2


def test_a_table_of_answers_by_hand(tmp_path):
    folder = RunDir(tmp_path / "seed0-0")
    node = {"refusal": {"outcomes": {"refusal": "refusal", "answer": None}}}
    config = {
        "model": {"name": "m"}, "loss": {"name": "sft"}, "data": {"toxic": 0}, "seed": 0, "judge": node,
        "benchmark": {"b": {"kind": "toxic"}},
    }  # fmt: skip
    folder.create(json.dumps(config), {})
    said = [ResponseRow(str(i), f"prompt {i}", f"answer {i}", False) for i in range(5)]
    folder.write_responses("b", 3, said[:1])
    folder.write_responses("b", 12, said)
    labels = ["refusal", "answer", None, "answer", "refusal"]
    scores = [ScoreRow(str(i), None if label is None else float(label == "refusal"), label, None if label else "down")
              for i, label in enumerate(labels)]  # fmt: skip
    folder.write_scores("b", 12, "refusal", scores)
    columns, table = answers(folder, run_table(folder), 10, texts=False)
    assert columns == ["benchmark", "step", "prompt_id", "outcome", "refusal label", "refusal score"]
    assert table == [
        ["b", 12, "0", "refusal", "refusal", 1.0],
        ["b", 12, "1", "answered", "answer", 0.0],
        ["b", 12, "2", None, None, None],
        ["b", 12, "3", "answered", "answer", 0.0],
        ["b", 12, "4", "refusal", "refusal", 1.0],
    ]
    columns, table = answers(folder, run_table(folder), 2, texts=True)
    assert columns[3:5] == ["prompt", "response"]
    assert [row[2:5] for row in table] == [["0", "prompt 0", "answer 0"], ["2", "prompt 2", "answer 2"]]


def test_a_sample_is_spread_evenly():
    assert (spread(3, 5), spread(5, 5), spread(10, 4), spread(4, 0)) == ([0, 1, 2], [0, 1, 2, 3, 4], [0, 2, 5, 7], [])


def test_tags_are_short_enough_for_w_and_b():
    cell = {"model": "m" * 80, "loss": "emd", "toxic": 300, "weight": 5.6, "share": 0.0833333, "seed": 0}
    assert tags(cell | {"mixed": "harmful=20 filter=saft"}) == [
        "m" * 64, "emd", "toxic=300", "weight=5.6", "share=0.08333", "seed=0", "harmful=20", "filter=saft",
    ]  # fmt: skip
    plain = cell | {"toxic": 0, "weight": None, "share": None, "mixed": None, "model": "m", "loss": "sft"}
    assert tags(plain) == ["m", "sft", "toxic=0", "seed=0"]
    assert tags(plain | {"weight": "auto"})[3] == "weight=auto"


def test_lightning_s_own_loggers_work(place):
    node = ["+logger._target_=lightning.pytorch.loggers.CSVLogger", "+logger._partial_=true", "+logger.name=csv"]
    folder = run("seed=4", *node)
    run("seed=4", *node, "judge=[refusal,text]")
    first, second = ([*csv.DictReader(open(file))] for file in sorted(folder.path.glob("csv/version_*/metrics.csv")))
    assert [int(row["step"]) for row in first if row["train/safe_loss"]] == [*range(1, STEPS + 1)]
    measured = run_table(folder).rows

    def logged(rows):
        found = {int(row["step"]): {k: float(v) for k, v in row.items() if k.startswith("eval/") and v} for row in rows}
        return {step: rates for step, rates in found.items() if rates}

    assert all("eval/local/text/incoherent" in rates for rates in logged(second).values())
    assert not any("eval/local/refusal/refusal" in rates for rates in logged(second).values()), "sent twice"
    both = {step: rates | logged(second)[step] for step, rates in logged(first).items()}
    assert both == curves(measured)


def test_other_ranks_send_nothing(monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    tracker = Tracker(checked(composed("run", "logger=wandb")), RunDir(Path("nowhere")), lambda: pytest.fail("opened"))
    tracker.log_metrics({"train/loss": 1.0}, 1)
    tracker.evaluated()
    tracker.finish()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["+logger.projekt=x"], r"there is no key logger.projekt: did you mean logger.project\?"),
        (["logger.mode=on"], "logger.mode=on: it should be one of online, offline"),
        (["logger.sample=-1"], "logger.sample=-1: it should be greater than or equal to 0"),
        ([f"+judge.refusal.header={SECRET}"], r"judge.refusal.header holds the value of \$OPENAI_API_KEY, which"),
    ],
)
def test_mistakes_are_said_in_one_sentence(place, overrides, sentence):
    with pytest.raises(UserError, match=sentence) as raised:
        check(checked(composed("run", *PUSHED, "logger=wandb", *overrides)))
    assert SECRET not in str(raised.value)
