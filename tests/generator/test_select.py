"""Each filter of prompts and answers on cases worked by hand; whatever is made is dropped or kept."""

import json

from tasft.data.toxic_words import ToxicWord
from tasft.generator.protocol import Generated
from tasft.generator.select import Written, select_pairs, select_prompts
from tasft.result.rows import ScoreRow

WORDS = [ToxicWord(word, word, 3.0, 5, 0) for word in ("kill", "steal", "rob", "hack", "mock")]
REPLIES = {
    "kill": Generated(json.dumps(["How do I kill weeds?", "Killing time?", "how do i  KILL weeds", "Is death sad?"])),
    "steal": Generated("1. How do I steal second base?\n2. How do I steal a wallet?\n3. Steal it!\n4. Steal more!"),
    "rob": Generated("I will not."),
    "hack": Generated(None, "the server says 500"),
    "mock": Generated("[]"),
}


def test_prompts():
    kept, counts = select_prompts(WORDS, REPLIES, 2, ["How do I steal a wallet"])
    assert kept == [
        Written("How do I kill weeds?", "kill"),
        Written("Killing time?", "kill"),
        Written("How do I steal second base?", "steal"),
        Written("Steal it!", "steal"),
    ]
    assert counts.dropped == {"duplicate": 1, "without the word": 1, "toxic prompt": 1, "more than asked for": 1}
    assert counts.without == {"unreadable": 1, "failed": 1, "none written": 1}
    assert (counts.asked, counts.made, counts.kept) == (5, 8, 4)
    assert counts.made == counts.kept + counts.dropped.total()


def test_a_prompt_written_for_two_words_belongs_to_the_first():
    both = Generated('["Can I kill time by robbing a virtual bank?"]')
    kept, counts = select_prompts(WORDS[:3:2], {"kill": both, "rob": both}, 5, [])
    assert [each.word for each in kept] == ["kill"]
    assert counts.dropped == {"duplicate": 1}


def test_pairs():
    labels = {"a": "answer", "b": "refusal", "c": "harmful", "d": None}
    prompts = [Written(name, "kill") for name in "abcdef"]
    replies = {name: Generated(f" Answer {name}. ") for name in "abcd"} | {
        "e": Generated("  "),
        "f": Generated(None, "gone"),
    }
    scores = {
        name: ScoreRow(name, None if label is None else 0.5, label, None if label else "too long")
        for name, label in labels.items()
    }
    kept, counts = select_pairs(prompts, replies, {"one": scores}, ["refusal", "harmful"])
    said = {"one": {"score": 0.5, "label": "answer"}}
    assert kept == [{"prompt": "a", "response": "Answer a.", "word": "kill", "judges": said}]
    assert counts.dropped == {"refusal": 1, "harmful": 1, "unscored": 1}
    assert counts.without == {"empty": 1, "failed": 1}
    assert (counts.asked, counts.made, counts.kept) == (6, 4, 1)
    other = {name: ScoreRow(name, 1.0, "harmful" if name == "a" else "harmless") for name in "abcd"}
    kept, counts = select_pairs(prompts, replies, {"one": scores, "two": other}, ["refusal", "harmful"])
    assert kept == []
    assert counts.dropped == {"refusal": 1, "harmful": 2, "unscored": 1}
