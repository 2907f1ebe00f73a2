"""Scores keep the ids of their answers, and unscored answers stay."""

import pytest

from tasft.evaluate.judging import judge, judge_rest
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
