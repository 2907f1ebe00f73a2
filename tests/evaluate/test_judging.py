"""Scores keep the ids of their answers, unscored answers stay, and judges do not get in each other's way."""

import copy
import json

import pytest
import torch

from tasft.config import CONF
from tasft.errors import UserError
from tasft.evaluate.judging import (
    Asked,
    changed,
    deciding,
    heed,
    judge,
    judge_all,
    judge_rest,
    names,
    relabels,
    scoring,
)
from tasft.harvest import scored
from tasft.judge.protocol import Score
from tasft.result.batches import Batches
from tasft.result.rows import ResponseRow, ScoreRow, read_rows
from tasft.result.store import RunDir, read_config

ROWS = [ResponseRow("b", "Why?", "So."), ResponseRow("a", "How?", ""), ResponseRow("c", "Who?", "Me.")]


def by_length(prompts, responses):
    assert (prompts, responses) == (["Why?", "How?", "Who?"], ["So.", "", "Me."])
    pairs = zip(prompts, responses, strict=True)
    return [
        Score(len(r), f"{p} {r}", detail={"letters": len(r) - 1}) if r else Score(None, reason="empty response")
        for p, r in pairs
    ]


def test_every_answer_has_its_score_or_a_reason():
    assert judge(by_length, ROWS) == [
        ScoreRow("b", 3, "Why? So.", None, {"letters": 2}),
        ScoreRow("a", None, None, "empty response", again=False),
        ScoreRow("c", 3, "Who? Me.", None, {"letters": 2}),
    ]


def test_a_judge_that_leaves_answers_out_is_refused():
    with pytest.raises(ValueError):
        judge(lambda prompts, responses: [Score(1.0)], ROWS)


def test_what_was_left_unscored_is_judged_again_and_nothing_else():
    asked = []

    def once_more(prompts, responses):
        asked.append(responses)
        return [Score(7.0)] * len(responses)

    before = judge(by_length, ROWS)
    assert judge_rest(once_more, ROWS, before) == [before[0], ScoreRow("a", 7.0), before[2]]
    assert len(judge_rest(once_more, ROWS, None)) == 3
    assert asked == [[""], ["So.", "", "Me."]]
    full = [ScoreRow(row.prompt_id, 1.0) for row in ROWS]
    assert judge_rest(once_more, ROWS, full) == full and len(asked) == 2


class Heavy:
    """A judge with weights, which says what it does and fails on some answers."""

    def __init__(self, name, events, fails=None):
        self.name, self.events, self.fails, self.weights = name, events, fails, None

    def __call__(self, prompts, responses):
        self.weights = f"weights of {self.name}"
        self.events.append((self.name, responses[0]))
        if self.fails is not None and responses[0] == "b":
            raise self.fails
        return [Score(1.0, "harmful") if response else Score(None, reason="empty response") for response in responses]

    def let_go(self):
        self.events.append((self.name, "lets go"))


def test_one_judge_after_the_other_and_one_that_fails_stops_no_other(tmp_path, caplog):
    events, written = [], []
    judges = {
        "x": Heavy("x", events),
        "mistaken": Heavy("mistaken", events, ValueError("a slip")),
        "large": Heavy("large", events, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")),
        "larger": Heavy("larger", events, RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")),
        "offline": Heavy("offline", events, UserError("no network: find one")),
        "y": Heavy("y", events),
    }

    def asked(judge, letter):
        return Asked(
            judge, lambda: [ResponseRow("1", "p", letter)], tmp_path / f"{letter}.{judge}.jsonl", f"answers to {letter}"
        )

    todo = [asked(judge, letter) for letter in "abc" for judge in judges]  # benchmark by benchmark
    failed = judge_all(judges, todo, lambda: written.append(1))
    several = ["a", "b", "c", "lets go"]
    assert events == [
        *[("x", event) for event in several],
        *[(judge, event) for judge in list(judges)[1:-1] for event in ("a", "b", "lets go")],
        *[("y", event) for event in several],
    ]
    assert failed == {
        "mistaken": "ValueError: a slip",
        "large": "out of memory: give a smaller judge.large.batch_size, or another device or dtype",
        "larger": "out of memory: give a smaller judge.larger.batch_size, or another device or dtype",
        "offline": "no network: find one",
    }
    assert "judge.mistaken fails" in caplog.text and "Traceback" in caplog.text  # whose author has to see where
    assert len(written) == len(list(tmp_path.glob("*.jsonl"))) == 3 + 4 + 3
    assert read_rows(tmp_path / "c.y.jsonl", ScoreRow) == [ScoreRow("1", 1.0, "harmful")]
    assert json.loads((tmp_path / "c.y.json").read_text()) == {"weights": ["weights of y"]}
    events.clear()
    assert judge_all({"x": judges["x"]}, todo, lambda: written.append(1)) == {}
    assert events == [("x", "lets go")] and len(written) == 10  # all is there


REWARD = {"_target_": "tasft.judge.reward.Reward", "path": "any", "threshold": None, "batch_size": 8}
XSTEST = {"_target_": "tasft.judge.llm.XSTest", "model": "m", "base_url": "http://a/v1", "key": "K"}


def test_what_decides_scores_and_what_labels_alone():
    assert deciding(XSTEST) == deciding(XSTEST | {"base_url": "http://b/v1", "key": "L"})  # the name says who answers
    assert deciding(XSTEST) != deciding(XSTEST | {"base_url": None})  # at OpenAI it is another's
    assert deciding(XSTEST) != deciding(XSTEST | {"model": "n"})
    assert deciding(REWARD) != deciding(REWARD | {"threshold": 1.0})
    assert scoring(REWARD) == scoring(REWARD | {"threshold": 1.0}) != scoring(REWARD | {"path": "other"})
    unknown = REWARD | {"_target_": "no.such.Judge"}  # nobody knows what its threshold decides
    assert scoring(unknown) != scoring(unknown | {"threshold": 1.0})


SPEED = "outcomes kinds needs joint key concurrency asks tokens_per_minute batch_size device".split()


def test_scores_of_configs_that_said_less_stay_the_judges():
    chosen = ("pair", "xstest", "alpaca_eval", "moderation", "qwen3guard")
    now = {name: read_config(CONF / f"judge/{name}.yaml")[name] for name in chosen}
    before = copy.deepcopy(now)  # as the first version had them
    del before["qwen3guard"]["threshold"]
    for name in ("pair", "xstest", "alpaca_eval"):
        del before[name]["temperature"], before[name]["max_completion_tokens"]
        before[name]["model"] = "gpt-4o-mini"
    before["moderation"]["model"] = "omni-moderation-latest"
    before["qwen3guard"]["revision"] = None
    assert changed(before, now) == set()
    assert relabels(before["qwen3guard"], now["qwen3guard"])  # its labels were another rule's
    assert not relabels(before["pair"], now["pair"])
    said = {name: {k: v for k, v in node.items() if k not in SPEED} for name, node in before.items()}
    assert all(said[name] in names(now[name]) for name in now)  # files that are named by it are found
    for name, key, value in (
        ("pair", "temperature", 1.0),
        ("xstest", "temperature", "published"),
        ("alpaca_eval", "temperature", 0.0),  # published is 1 where choices are weighted
        ("moderation", "model", "m"),
        ("qwen3guard", "revision", "a"),
    ):
        assert changed(before, now | {name: {**now[name], key: value}}) == {name}


def test_a_harvests_scores_are_labelled_by_todays_threshold_and_old_ones_found(tmp_path):
    known = Batches(tmp_path / "scores.jsonl", ScoreRow)
    about = [[row.prompt, row.response] for row in ROWS]
    old = [ScoreRow(row.prompt_id, 0.5, "by the API") for row in ROWS]
    node = {"_target_": "tasft.judge.moderation.Moderation", "model": "m", "threshold": None}
    known.add(old, node, about)  # under all settings, and without what another threshold needs
    assert scored(known, node, None, ROWS) == old
    strict = REWARD | {"threshold": 0.5}
    known.add([ScoreRow(row.prompt_id, 0.5) for row in ROWS], scoring(REWARD), about)
    assert [row.label for row in scored(known, strict, None, ROWS)] == ["harmful"] * 3


def test_another_threshold_labels_what_is_there_and_other_settings_drop_it(tmp_path):
    folder = RunDir(tmp_path)
    moderation = {"_target_": "tasft.judge.moderation.Moderation", "threshold": 0.5}
    before = {"reward": REWARD, "moderation": moderation, "old": moderation, "xstest": XSTEST}
    scores = {
        "reward": [ScoreRow("1", 2.0), ScoreRow("2", 1.0), ScoreRow("3", None, reason="empty response")],
        "moderation": [ScoreRow("1", 0.6, "harmful", detail={"hate": 0.6, "flagged": 0.0})],
        "old": [ScoreRow("1", 0.6, "harmful", detail={"hate": 0.6})],  # without what a null threshold needs
        "xstest": [ScoreRow("1", 1.0, "refusal")],
    }
    for name, rows in scores.items():
        folder.write_scores("b", 3, name, rows)
    now = {
        "reward": REWARD | {"threshold": 1.5, "batch_size": 1},
        "moderation": moderation | {"threshold": None},
        "old": moderation | {"threshold": None},
        "xstest": XSTEST | {"model": "n"},
    }
    assert heed(folder, before, now, {"old"}) == {"reward", "moderation"}
    assert [row.label for row in folder.read_scores("b", 3, "reward")] == ["harmful", "harmless", None]
    assert folder.read_scores("b", 3, "moderation")[0].label == "harmless"
    assert folder.scores_present() == [("b", 3, name) for name in ("moderation", "reward", "xstest")]
    heed(folder, before, now, {"xstest"})  # which can judge again
    assert not folder.has_scores("b", 3, "xstest")
