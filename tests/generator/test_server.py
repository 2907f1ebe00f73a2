"""A chat model behind a server: what it says, and replies that are none."""

import json

import pytest

from tasft.generator.protocol import Generated
from tasft.generator.server import Remote


@pytest.mark.parametrize("reply", [{"choices": {"a": 1}}, {"choices": []}, {"choices": [None]}, {}])
def test_a_reply_of_another_shape_is_no_answer_and_no_traceback(reply, api, monkeypatch, tmp_path):
    monkeypatch.setenv("TASFT_CACHE", str(tmp_path))
    model = Remote("any", base_url=api.base_url, key="NO_KEY", attempts=1, wait=0.01)
    assert model.answer(["abc"]) == [Generated("cba")]
    api.answers["/v1/chat/completions"] = lambda request: reply
    assert model.answer(["abc", "def"]) == [
        Generated("cba"),
        Generated(None, "the reply is garbage: it has no text, 1 times"),
    ]


def test_a_conversation_goes_on(api):
    model = Remote("any", base_url=api.base_url, top_p=0.9, system="unused: the conversation has its own")
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "abc"}]
    assert model.reply([turns, turns], draws=[1, 2]) == [Generated("cba")] * 2
    assert list(api.asked.values()) == [2]
    [sent] = api.asked
    assert json.loads(sent) == {
        "model": "any", "messages": turns, "temperature": 0.7, "top_p": 0.9, "max_tokens": 1024,
    }  # fmt: skip
