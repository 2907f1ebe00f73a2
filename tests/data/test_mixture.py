"""Which rows are chosen: nested counts, one order per seed, and what is passed over."""

import pytest

from tasft.data.example import Example, Rejected, example
from tasft.data.mixture import choose, summary
from tasft.data.tokenize import Tokenized
from tasft.errors import UserError
from tasft.schema import Fields
from tasft.source import Row

FIELDS = {"prompt": "prompt", "response": "response"}
ROWS = [Row(f"pairs.jsonl line {i + 1}", {"prompt": f"prompt {i}", "response": f"response {i}"}) for i in range(50)]


def encode(made: Example) -> Tokenized | Rejected:
    if "long" in made.prompt:
        return Rejected(made.source, f"its prompt alone has {len(made.prompt)} tokens; data.max_length=8")
    return Tokenized((1, 2, 3), 1, made.toxic)


def chosen(count, seed=0, kind="toxic", rows=ROWS):
    examples = [example(row, Fields(**FIELDS), kind == "toxic") for row in rows]
    return choose(examples, kind, count, seed, encode, "data.toxic")


def prompts(count, **settings):
    return [each.prompt for each in chosen(count, **settings).examples]


def test_a_smaller_count_is_the_start_of_a_larger_one():
    everything = prompts(50)
    assert sorted(everything) == sorted(row.values["prompt"] for row in ROWS)
    assert everything != [row.values["prompt"] for row in ROWS]
    for count in (0, 5, 15, 49):
        assert prompts(count) == everything[:count]


def test_the_order_is_the_seeds_and_differs_between_kinds():
    assert prompts(15) == prompts(15)
    assert prompts(15, seed=1) != prompts(15)
    assert set(prompts(15, seed=1)) != set(prompts(15))
    assert prompts(15, kind="safe") != prompts(15)


def test_the_order_is_the_same_on_every_machine():
    # Python promises the same numbers from a seed, and a string seeds by its SHA-512.
    assert prompts(3) == ["prompt 33", "prompt 23", "prompt 26"]


def test_examples_and_tokens_go_together():
    made = chosen(5)
    assert made.tokens == [Tokenized((1, 2, 3), 1, True)] * 5
    assert all(each.toxic for each in made.examples)
    assert made.rejected == []


def pairs(*texts):
    return [Row(f"pairs.jsonl line {i + 1}", {"prompt": p, "response": r}) for i, (p, r) in enumerate(texts)]


def test_a_toxic_prompt_enters_once_and_a_safe_one_as_often_as_it_is_there():
    rows = pairs(("a", "1"), ("b", "2"), ("a", "3"), ("a", "4"))
    toxic = chosen(2, rows=rows)
    assert sorted(each.prompt for each in toxic.examples) == ["a", "b"]
    assert {r.reason for r in toxic.rejected} <= {"duplicate prompt"}
    assert sorted(prompts(4, rows=rows, kind="safe")) == ["a", "a", "a", "b"]
    assert sorted(prompts(2, rows=rows, kind="harmful")) == ["a", "b"]


def test_too_few_rows_are_counted_with_reasons_and_places():
    rows = pairs(("a", "1"), ("b", ""), (" ", "3"), ("long", "4"), ("too long", "5"), ("a", "6"), ("c", "7"))
    with pytest.raises(UserError) as raised:
        chosen(3, rows=rows)
    said = str(raised.value)
    assert said.startswith("data.toxic=3, but pairs.jsonl has only 2 usable rows (rejected: ")
    assert "2 prompt longer than data.max_length (first: pairs.jsonl line " in said
    assert "1 empty response (first: pairs.jsonl line 2)" in said
    assert "1 empty prompt (first: pairs.jsonl line 3)" in said
    assert "1 duplicate prompt (first: pairs.jsonl line " in said
    assert said.endswith("): ask for fewer or add rows")
    assert len(chosen(2, rows=rows).rejected) <= 5


def test_too_few_rows_without_a_rejected_one():
    with pytest.raises(UserError, match=r"^data\.toxic=51, but pairs\.jsonl has only 50 usable rows: ask for fewer"):
        chosen(51)


def test_only_rows_on_the_way_are_reported():
    rows = ROWS[:20] + pairs(("x", "")) * 30
    made = chosen(20, rows=rows)
    assert len(made.examples) == 20
    assert set(made.rejected) == {Rejected("pairs.jsonl line 1", "empty response")}
    assert len(made.rejected) <= 30
    assert chosen(0, rows=rows).rejected == []


def test_summary_counts_the_commonest_first():
    rejected = [Rejected("a line 1", "empty prompt"), Rejected("a line 2", "x data.max_length=8")]
    rejected.append(Rejected("a line 5", "y data.max_length=8"))
    assert summary(rejected, "<", ">") == (
        "<2 prompt longer than data.max_length (first: a line 2), 1 empty prompt (first: a line 1)>"
    )
    assert summary([], "<", ">") == ""
