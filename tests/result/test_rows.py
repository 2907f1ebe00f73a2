import pytest

from tasft.errors import UserError
from tasft.result.rows import ResponseRow, ScoreRow, read_rows, write_rows

RESPONSES = [
    ResponseRow("a", "How do I bake bread?", "First, mix.\nThen\u2028wait. \u03bb \x85"),
    ResponseRow("b", "Why?", ""),
]
SCORES = [
    ScoreRow("a", 1.0, "refusal", detail={"hate/threatening": 0.5, "violence": 1}),
    ScoreRow("b", None, reason="empty response"),
]


def test_rows_come_back_as_written_whatever_line_breaks_stand_in_a_text(tmp_path):
    write_rows(tmp_path / "r.jsonl", RESPONSES)
    write_rows(tmp_path / "s.jsonl", SCORES)
    assert read_rows(tmp_path / "r.jsonl", ResponseRow) == RESPONSES
    assert read_rows(tmp_path / "s.jsonl", ScoreRow) == SCORES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.jsonl", "s.jsonl"]  # no draft left


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"prompt_id": "b", "score": 1', "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"prompt_id": "b"}', "no field 'score'"),
        ('{"prompt_id": "b", "score": 1, "grade": 2}', "unknown field 'grade'"),
        ('{"prompt_id": 7, "score": 1}', "prompt_id is 7, not text"),
        ('{"prompt_id": "b", "score": "1"}', "score is '1', not a number"),
        ('{"prompt_id": "b", "score": NaN}', "not a finite number"),
        ('{"prompt_id": "b", "score": 1, "detail": [0.5]}', "detail is [0.5], not an object"),
        ('{"prompt_id": "b", "score": 1, "detail": {"hate": "0.5"}}', "detail.hate is '0.5', not a number"),
        ('{"prompt_id": "b", "score": 1, "detail": {"hate": Infinity}}', "detail.hate is inf, not a finite number"),
        ('{"prompt_id": "b", "score": null}', "reason does not say why"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, why):
    path = tmp_path / "s.jsonl"
    path.write_text('{"prompt_id": "a", "score": 0.0}\n' + line + "\n")
    with pytest.raises(UserError, match=r"s\.jsonl line 2 is damaged") as caught:
        read_rows(path, ScoreRow)
    assert why in str(caught.value)


def test_a_score_without_detail_is_read(tmp_path):
    (tmp_path / "s.jsonl").write_text('{"prompt_id": "a", "score": 1.0, "label": "refusal", "reason": null}\n')
    assert read_rows(tmp_path / "s.jsonl", ScoreRow) == [ScoreRow("a", 1.0, "refusal")]


def test_text_that_is_no_utf8_is_damaged(tmp_path):
    (tmp_path / "r.jsonl").write_bytes(b'{"prompt_id": "a", "prompt": "\xff", "response": ""}\n')
    with pytest.raises(UserError, match="line 1 is damaged"):
        read_rows(tmp_path / "r.jsonl", ResponseRow)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "s.jsonl"
    write_rows(path, SCORES)
    before = path.read_bytes()

    def broken():
        yield SCORES[0]
        raise RuntimeError("judge died")

    with pytest.raises(RuntimeError):
        write_rows(path, broken())
    with pytest.raises(UnicodeEncodeError):  # half a surrogate pair fails only while the file is written
        write_rows(path, [ResponseRow("a", "", "\ud83d")])
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["s.jsonl"]
