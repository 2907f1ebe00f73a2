"""Prompts of a benchmark: order, count, and ids that stay."""

import json

import pytest

from tasft.benchmark.prompts import BenchmarkPrompt, number, read_prompts
from tasft.errors import UserError
from tasft.schema import Fields, Source


def test_an_id_is_the_start_of_the_texts_sha256():
    # printf Hello | sha256sum
    assert number(["Hello"]) == [BenchmarkPrompt("185f8db32271", "Hello")]


def test_ids_are_unique_and_do_not_depend_on_other_prompts():
    a, b = (prompt.id for prompt in number(["a", "b"]))
    assert [prompt.id for prompt in number(["b", "a", "b", "b", "ä"])][:4] == [b, a, f"{b}-2", f"{b}-3"]
    assert number([]) == []


def test_prompts_keep_their_order_and_the_first_count(tmp_path):
    file = tmp_path / "prompts.csv"
    file.write_text("kind,text\nx,b\ny,a\nx,b\nx,c\n")

    def texts(**source):
        prompts = read_prompts(Source(path=str(file), fields=Fields("text"), **source), "benchmark.b.source")
        return [prompt.text for prompt in prompts]

    assert texts() == ["b", "a", "b", "c"]
    assert texts(count=2) == ["b", "a"]
    assert texts(count=9, where={"kind": "x"}) == ["b", "b", "c"]


def test_mistakes_name_the_key_or_the_place(tmp_path):
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps([{"prompt": "a"}, {"prompt": 3}]))
    with pytest.raises(
        UserError, match=r"benchmark\.b\.source\.fields names no prompt: give .*fields\.prompt=<column>"
    ):
        read_prompts(Source(path=str(file)), "benchmark.b.source")
    with pytest.raises(UserError, match=r"^prompts\.json row 1: field 'prompt' is 3, not text$"):
        read_prompts(Source(path=str(file), fields=Fields("prompt")), "benchmark.b.source")
