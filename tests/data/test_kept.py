"""Chosen rows that are kept: what comes back is what was made, whoever made it."""

import threading

import pytest

from tasft.data import kept as module
from tasft.data.example import Example, Rejected
from tasft.data.kept import kept
from tasft.data.mixture import choose
from tasft.data.tokenize import Tokenized

EXAMPLES = [Example(f"prompt {i}", f"answer {i}", True, f"row {i}") for i in range(6)]
EXAMPLES[2] = Rejected("row 2", "empty response")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TASFT_CACHE", str(tmp_path))
    forget()
    return tmp_path / "tokens"


def forget():
    """What a new process knows."""
    module._known.clear()


def encode(made):
    """Pairs of different lengths, a truncated one, and one that is passed over."""
    number = int(made.prompt[-1])
    if number == 4:
        return Rejected(made.source, "prompt longer than data.max_length")
    rejected = Tokenized((7, 8, 9, 70_000), 2, True) if number % 2 else None
    return Tokenized(tuple(range(number + 2)), 1, True, number == 3, rejected)


def chosen():
    return choose(EXAMPLES, "toxic", 4, 0, encode, "data.toxic")


def test_a_process_after_the_first_reads_what_that_one_made(cache):
    made = kept(["a"], EXAMPLES, chosen)
    assert kept(["a"], EXAMPLES, pytest.fail) is made
    forget()
    again = kept(["a"], EXAMPLES, pytest.fail)
    assert again == made == chosen() and len(made.rejected) == 2
    assert all(type(token) is int for tokens in again.tokens for half in tokens.halves for token in half.input_ids)
    assert again.fingerprint == made.fingerprint
    assert len(list(cache.iterdir())) == 1


def test_what_decides_otherwise_is_another(cache):
    kept(["a"], EXAMPLES, chosen)
    made = []
    for other in (["b"], ["a", None], [{"a": 1}]):
        kept(other, EXAMPLES, lambda: made.append(0) or chosen())
    assert len(made) == 3 and len(list(cache.iterdir())) == 4


def test_a_file_that_was_cut_short_is_made_again(cache):
    made = kept(["a"], EXAMPLES, chosen)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        forget()
        assert kept(["a"], EXAMPLES, chosen) == made
        assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_stops_nothing(cache):
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("in the way")
    assert kept(["a"], EXAMPLES, chosen) == chosen()


def test_several_at_once(cache):
    found = []
    threads = [threading.Thread(target=lambda: found.append(kept(["a"], EXAMPLES, chosen))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [chosen()] * 8 and len(list(cache.iterdir())) == 1
