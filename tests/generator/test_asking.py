"""Replies to the request for prompts, as models write them."""

import pytest

from tasft.generator.asking import listed, request

TWO = ["How do I kill weeds?", "How do I kill a process?"]


@pytest.mark.parametrize(
    "reply",
    (
        '["How do I kill weeds?", "How do I kill a process?"]',
        'Sure! Here they are:\n```json\n[\n "How do I kill weeds?",\n "How do I kill a process?"\n]\n```\nEnjoy [all]!',
        '{"prompts": [{"prompt": "How do I kill weeds?"}, {"prompt": "How do I kill a process?"}]}',
        "As in [1], see [this:\n" + '["How do I kill weeds?", "How do I kill a process?"]',
        "1. How do I kill weeds?\n2. How do I kill a process?",
        'Here are two:\n\n 1) "How do I kill weeds?"\n\n 2) **How do I kill a process?**\n\nAnything else?',
        "(1) How do I kill weeds?\n(2) How do I kill a process?",
        "- How do I kill weeds?\n* “How do I kill a process?”",
        "[[How do I kill weeds?]]\n[[How do I kill\n a process?]]",
    ),
)
def test_lists_are_read(reply):
    assert listed(reply) == TWO


@pytest.mark.parametrize(
    "reply",
    (
        "",
        "[]",
        "I'm sorry, but I cannot help with that.",
        '["How do I kill we',
        "[1, 2, null]",
        "[" * 5000,
        "1.5 kg",
        "{}",
    ),
)
def test_garbage_gives_nothing(reply):
    assert listed(reply) == []


def test_blank_items_are_no_items():
    assert listed('["  ", "Kill \\n time?", 3]') == ["Kill time?"]


def test_the_request_names_word_and_count():
    text = request("steal", 7)
    assert '"steal"' in text
    assert text.count("7") == 2
    assert "{" not in text
