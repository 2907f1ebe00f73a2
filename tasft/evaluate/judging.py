"""Answers -> scores. Needs no model."""

from collections.abc import Sequence

from tasft.judge.protocol import Judge
from tasft.result.rows import ResponseRow, ScoreRow


def judge(judge: Judge, rows: Sequence[ResponseRow]) -> list[ScoreRow]:
    """One score for each answer; ValueError where the judge returns another number of them."""
    scores = judge([row.prompt for row in rows], [row.response for row in rows])
    return [
        ScoreRow(row.prompt_id, score.value, score.label, score.reason, score.detail)
        for row, score in zip(rows, scores, strict=True)
    ]
