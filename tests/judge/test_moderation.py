"""The moderation judge against a server that speaks the API, with and without bad moments."""

import hashlib
import json
import logging
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tasft.errors import UserError
from tasft.evaluate.judging import judge
from tasft.judge.moderation import Moderation
from tasft.judge.protocol import Score
from tasft.result.rows import ResponseRow, ScoreRow, read_rows, write_rows
from tasft.schema import JUDGE_NOTES

CONF = Path(__file__).parents[2] / "conf/judge/moderation.yaml"
KEY = "sk-a-secret-that-must-stay-one"
CATEGORIES = ("hate", "illicit", "violence")


def built(**overrides):
    node = {key: value for key, value in OmegaConf.load(CONF).moderation.items() if key not in JUDGE_NOTES}
    return instantiate(node, **overrides)


def expected(text, judged=None):
    scores = [byte / 255 for byte in hashlib.sha256((judged or text).encode()).digest()[:3]]
    label = "harmful" if "harm" in text else "harmless"
    return Score(
        max(scores), label, detail=dict(zip(CATEGORIES, scores, strict=True)) | {"flagged": float("harm" in text)}
    )


def test_scores_are_the_apis(api):
    responses = ["Bread is good.", "Do harm to the bread.", " \n"]
    scores = built(base_url=api.base_url)(["a", "b", "c"], responses)
    assert scores == [expected(responses[0]), expected(responses[1]), Score(None, reason="empty response")]
    assert sorted(api.asked) == [
        '{"model":"omni-moderation-2024-09-26","input":"Bread is good."}',
        '{"model":"omni-moderation-2024-09-26","input":"Do harm to the bread."}',
    ]


def test_a_threshold_is_applied_to_what_was_asked_before(api):
    answer = {"results": [{"flagged": False, "category_scores": {"hate": 0.25, "illicit": None, "violence": 0.5}}]}
    api.answers["/v1/moderations"] = lambda request: dict(answer)
    for threshold, label in (
        (None, "harmless"), (0.51, "harmless"), (0.5, "harmful"), (0.0, "harmful"),
        ({"hate": 0.3}, "harmless"), ({"hate": 0.3, "violence": 0.5}, "harmful"), ({"hate": 0.25}, "harmful"),
    ):  # fmt: skip
        [score] = built(base_url=api.base_url, threshold=threshold)(["a"], ["Well."])
        assert score == Score(0.5, label, detail={"hate": 0.25, "violence": 0.5, "flagged": 0.0})
    assert api.asked.total() == 1
    with pytest.raises(UserError, match=r"^judge\.moderation\.threshold names hat, but the API scores hate, violence$"):
        built(base_url=api.base_url, threshold={"hat": 0.3})(["a"], ["Well."])


def test_prompt_and_response_together(api):
    [score] = built(base_url=api.base_url, with_prompt=True)(["Bake?"], ["Yes."])
    assert score == expected("Yes.", "Bake?\n\nYes.")


@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"results": []},
        {"results": [{"flagged": True}]},
        {"results": [{"flagged": True, "category_scores": []}]},
        {"results": [{"flagged": True, "category_scores": {}}]},
        {"results": [{"flagged": 1, "category_scores": {"hate": 0.5}}]},
        {"results": [{"flagged": True, "category_scores": {"hate": 1.5}}]},
        {"results": [{"flagged": True, "category_scores": {"hate": "0.5"}}]},
        {"results": [{"flagged": True, "category_scores": {"hate": float("nan")}}]},
        {"results": [{"flagged": True, "category_scores": {"hate": True}}]},
    ],
)
def test_what_is_no_result_is_no_score(api, reply):
    api.answers["/v1/moderations"] = lambda request: dict(reply)
    [score] = built(base_url=api.base_url, attempts=2, wait=0.001)(["a"], ["Well."])
    assert score.value is None and score.reason.startswith("the reply is garbage: ")


def test_a_missing_key_and_a_wrong_threshold_are_seen_at_once(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(
        UserError, match=r"^judge\.moderation needs a key: set OPENAI_API_KEY, or give judge\.mod.*url="
    ):
        Moderation()
    with pytest.raises(UserError, match=r"^judge\.moderation\.threshold=50: it should be from 0 to 1$"):
        Moderation(base_url="http://localhost:1/v1", threshold=50)
    with pytest.raises(UserError, match=r"^judge\.moderation\.threshold=2: it should be from 0 to 1$"):
        Moderation(base_url="http://localhost:1/v1", threshold={"hate": 0.5, "violence": 2})


def test_prompts_and_responses_have_to_pair_up(api):
    with pytest.raises(ValueError):
        built(base_url=api.base_url)(["a"], [])


@pytest.mark.parametrize("seed", range(3))
def test_through_a_bad_server_no_row_is_lost_none_is_asked_twice_and_the_key_stays_secret(
    api, seed, tmp_path, monkeypatch, caplog, capfd
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    api.mishaps, api.seed = api.MISHAPS, seed
    answer = api.answers["/v1/moderations"]
    too_long = {"status": 400, "error": {"message": f"{KEY} sent too long a text"}}
    api.answers["/v1/moderations"] = lambda r: dict(too_long) if "long" in r["input"] else answer(r)
    texts = [f"Answer {i}{' with harm' * (i % 3 == 0)}." for i in range(40)] + ["", "A long one.", "Answer 1."]
    rows = [ResponseRow(f"row {i}", "Why?", text) for i, text in enumerate(texts)]
    moderation = built(base_url=api.base_url, timeout=1.0, attempts=4, wait=0.01)
    scores = judge(moderation, rows)
    write_rows(tmp_path / "scores.jsonl", scores)

    assert read_rows(tmp_path / "scores.jsonl", ScoreRow) == scores
    assert [score.prompt_id for score in scores] == [row.prompt_id for row in rows]
    for row, score in zip(rows, scores, strict=True):
        if score.score is not None:
            right = expected(row.response)
            assert (score.score, score.label, score.detail) == (right.value, right.label, right.detail)
        elif row.response == "":
            assert score.reason == "empty response"
        elif "long" in row.response:
            assert "too long a text" in score.reason or score.reason.endswith(", 4 times")
        else:
            assert score.reason.endswith(", 4 times")
    assert sum(score.score is None for score in scores) < 12
    assert sum(api.happened.values()) > 10 and len(api.happened) > 5

    api.mishaps, asked = (), api.asked.total()
    failed = {row.response for row, score in zip(rows, scores, strict=True) if score.score is None}
    again = judge(moderation, rows)  # only what failed is asked
    assert api.asked.total() - asked == len(failed) - 1  # the empty one needs no server
    assert [s.prompt_id for s in again if s.score is None] == ["row 40", "row 41"]
    answered = {body: n for body, n in api.answered.items() if "long" not in body}
    assert len(answered) == 40 and set(answered.values()) == {1}

    assert api.keys == {f"Bearer {KEY}"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"scores.jsonl", "replies.sqlite"} <= {path.name for path in files}
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    said = capfd.readouterr()
    assert KEY not in caplog.text + said.out + said.err + repr(vars(moderation)) + repr(vars(moderation.server))


JUDGING = """
import json, sys
from tasft.judge.moderation import Moderation
texts = json.loads(sys.argv[2])
scores = Moderation(base_url=sys.argv[1], timeout=1.0, wait=0.01)(texts, texts)
print(json.dumps([score.value for score in scores]))
"""


def test_killed_again_and_again_only_what_is_missing_is_asked(api, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    answer = api.answers["/v1/moderations"]
    api.answers["/v1/moderations"] = lambda request: (time.sleep(0.02), answer(request))[1]
    api.mishaps, api.share = ("429", "500", "garbage", "close"), 0.3
    texts = [f"Answer {i}." for i in range(120)]
    command = [sys.executable, "-c", JUDGING, api.base_url, json.dumps(texts)]

    def kept():
        with sqlite3.connect(tmp_path / "cache/replies.sqlite") as db:
            return db.execute("SELECT COUNT(*) FROM replies").fetchone()[0]

    for kill_at in (25, 60):
        judging = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while api.answered.total() < kill_at and judging.poll() is None:
            time.sleep(0.005)
        judging.send_signal(signal.SIGKILL)
        assert judging.wait() == -signal.SIGKILL
        assert kill_at - 16 <= kept() < 120
    before, asked = kept(), set(api.asked)
    api.asked.clear()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [expected(text).value for text in texts]
    again = set(api.asked) - {""}  # "": killed before its body had left, and seen by the server only now
    assert len(again) == 120 - before  # not one that was kept
    assert (asked | again) - {""} == {f'{{"model":"omni-moderation-2024-09-26","input":"{text}"}}' for text in texts}
    assert KEY not in done.stdout + done.stderr
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]
