"""`python -m tasft.inspect`: what it counts on files whose numbers are known, and what it says of mistakes."""

import json
import subprocess
import sys

import pytest

from tasft.config import entry
from tasft.inspect import inspect

ARGUMENTS = [
    "model=scratch", "model.scratch.vocab_size=300", "data=local", "data.safe.path=safe.jsonl", "data.safe.count=2",
    "data.format=short", "data.max_length=60", "data.toxic=1", "data.toxic_source.path=toxic.json", "benchmark=local",
    "benchmark.local.source.path=ask.json", "benchmark.local.kind=toxic",
]  # fmt: skip
SAFE = [
    ("What is bread?", "Food."),
    ("What is bread?", "Food."),
    ("What is bread?", "Baked flour."),
    ("How do I bake bread at home?", "word " * 100),
    ("", "x"),
    ("How can I tease my neighbour's dog", "Better not."),
]


@pytest.fixture
def shown(tmp_path, monkeypatch, capfd):
    """Runs the command in a folder with files: its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TASFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "safe.jsonl").write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in SAFE))
    (tmp_path / "toxic.json").write_text('[{"prompt": "How do I hide a sock?", "response": "Below the secret bed."}]')
    (tmp_path / "ask.json").write_text('["How do I bake  bread at HOME", "How can I tease my neighbours dogs?"]')

    def run(*overrides):
        monkeypatch.setattr(sys, "argv", ["inspect", *ARGUMENTS, *overrides])
        code = entry(inspect, "inspect")
        return code, *capfd.readouterr()

    return run


def line(text, start):
    """The words of the first line that starts so."""
    return next(each for each in text.splitlines() if each.startswith(start)).split()


def test_rows_duplicates_cuts_and_contamination(shown, tmp_path):
    code, out, err = shown("inspect.figure=lengths.png")
    assert code == 0, err
    # read, usable, same prompt, same pair, in benchmarks, can be used, wanted, cut
    assert line(out, "safe ") == ["safe", "6", "5", "2", "1", "2", "3", "2", "1"]
    assert line(out, "toxic ") == ["toxic", "1", "1", "0", "0", "0", "1", "1", "0"]
    assert "Rejected of data.safe: 1 empty prompt (first: safe.jsonl line 5)." in out
    assert line(out, "local ") == ["local", "2", "1", "+", "1", "-"]
    assert "1.00 safe: How do I bake bread at home? ~ local: How do I bake bread at HOME" in out
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_only_equal_prompts_count_where_the_config_says_so(shown):
    _, out, _ = shown("data.contamination.similarity=1", "data.contamination.policy=report")
    assert line(out, "local ") == ["local", "2", "1", "+", "0", "-"]
    assert line(out, "safe ")[5:7] == ["1", "5"]


def test_harmful_texts_are_shown_when_asked_for(shown):
    _, out, _ = shown()
    assert "What is bread?" in out
    assert "sock" not in out and "secret" not in out
    assert "prompt: [6 words]" in out and "response: [4 words]" in out
    _, out, _ = shown("inspect.harmful=true")
    assert "How do I hide a sock?" in out and "Below the secret bed." in out


def test_what_stops_a_run_is_said_when_all_has_been_shown(shown, tmp_path):
    (tmp_path / "toxic.json").write_text('[{"prompt": "a b", "response": 3}, {"prompt": "a b", "response": "c"}]')
    code, out, err = shown("data.harmful=3", "data.harmful_source.path=none.json", "data.safe.count=4")
    assert code == 1
    assert "Problem: toxic.json row 0: field 'response' is 3, not text" in out
    assert "Problem: data.harmful_source.path=none.json: no such file" in out
    assert "Problem: data.safe has only 3 rows that can be used, not 4" in out
    assert line(out, "toxic ")[1:3] == ["2", "1"]
    assert "tasft: a run would stop: data.safe has only 3 rows that can be used, not 4 (and 2 more, above)" in err
    code, out, _ = shown("data.contamination.policy=refuse")
    assert code == 1 and "2 rows of data.safe are asked by a benchmark" in out


def test_a_source_that_cannot_be_read_leaves_the_others(shown):
    code, out, _ = shown("data.safe.path=none.jsonl", "benchmark.local.source.path=none.json")
    assert code == 1
    assert line(out, "toxic ")[1:3] == ["1", "1"]
    assert "Lengths are words" in out
    assert "Problem: benchmark.local.source.path=none.json: no such file" in out


def test_without_a_harvest_it_says_which_command_makes_one(shown):
    code, out, _ = shown("data.toxic_source.path=null", "data.toxic_prompts.path=ask.json")
    assert code == 0
    assert (
        "data.toxic_source: none yet at data/harvest/scratch/toxic.jsonl: python -m tasft.harvest model=scratch" in out
    )
    assert line(out, "toxic prompts")[2:] == ["2", "2", "0", "-", "2", "0", "all", "-"]


def test_toxic_rows_that_a_filter_makes_have_no_source(shown):
    filtered = ["data.filter=saft_to_toxic", "saft.quantile=0.5", "loss=emd", "loss.share=0.1"]
    code, out, err = shown(*filtered, "data.toxic_source.path=null")
    assert code == 0, err
    assert "data.toxic_source: not used: data.filter=saft_to_toxic takes the toxic rows from the others" in out
    assert "data.toxic_prompts: not used" in out


def test_a_mistake_in_the_config_is_answered_without_torch(tmp_path):
    code = (
        "import sys; from tasft.inspect import main; sys.argv = ['x', 'data=local', 'inspect.figure=a.doc',"
        " 'data.safe.path=x.json', 'model=scratch']; code = main(); print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == ["1", "False"], done.stderr
    assert done.stderr.startswith("tasft: inspect.figure=a.doc: not the name of a figure")
