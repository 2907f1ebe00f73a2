"""Scores keep the ids of their answers, and unscored answers stay."""

import pytest

from tasft.evaluate.judging import judge
from tasft.judge.protocol import Score
from tasft.result.rows import ResponseRow, ScoreRow

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
        ScoreRow("a", None, None, "empty response"),
        ScoreRow("c", 3, "Who? Me.", None, {"letters": 2}),
    ]


def test_a_judge_that_leaves_answers_out_is_refused():
    with pytest.raises(ValueError):
        judge(lambda prompts, responses: [Score(1.0)], ROWS)
