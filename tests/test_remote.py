"""Requests to a server on this machine: retried, kept, never asked again."""

import email.utils
import hashlib
import json
import math
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from contextlib import closing
from functools import partial

import pytest

from tasft.errors import UserError
from tasft.remote import GIVE_UP, REFUSED, Failure, Server, Unreadable, _Minute, tokens

PATH = "/v1/echo"


def send(client, request):
    reply = client.post("/echo", body=request, cast_to=object)
    if not isinstance(reply, dict) or "said" not in reply:
        raise ValueError("nothing said")
    return {"said": reply["said"]}


@pytest.fixture
def echo(api):
    """The server answers /v1/echo with what it is sent."""
    api.answers[PATH] = lambda request: {"said": request["say"], "more": "unused"}
    return api


def patient(api, **settings):
    server = Server(api.base_url, **{"timeout": 20.0, "wait": 0.001, **settings})
    server.waited = []
    server.sleep = lambda seconds: server.waited.append(seconds) if seconds else None
    return server


def says(*texts):
    return [{"say": text} for text in texts]


def test_replies_stand_in_the_order_of_their_requests_and_equal_ones_are_asked_once(echo):
    # the first answer comes last
    echo.answers[PATH] = lambda request: {"said": request["say"], "slept": time.sleep(0.2 * (request["say"] == "a"))}
    server = patient(echo)
    assert server.ask("echo", says("a", "b", "a", "c"), send, "asking") == [{"said": x} for x in "abac"]
    assert list(echo.asked.values()) == [1, 1, 1]
    assert server.ask("echo", says("c", "d"), send, "asking") == [{"said": x} for x in "cd"]
    assert echo.asked.total() == 4
    server.ask("other", says("c"), send, "asking")  # another kind of question
    assert echo.asked.total() == 5
    assert server.ask("echo", [], send, "asking") == []


def test_where_a_model_is_served_does_not_decide_what_it_says_but_that_it_is_openais_does(echo, monkeypatch):
    moved = echo.base_url.replace("127.0.0.1", "localhost")
    for address in (echo.base_url, moved, echo.base_url + "/"):
        assert Server(address).ask("echo", says("a"), send, "asking") == [{"said": "a"}]
    assert echo.asked.total() == 1
    monkeypatch.setattr("tasft.remote.OPENAI", moved)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    for _ in range(2):
        assert Server().ask("echo", says("a"), send, "asking") == [{"said": "a"}]
    assert echo.asked.total() == 2


def test_what_an_earlier_version_kept_by_the_servers_address_is_not_asked_again(echo, tmp_path, monkeypatch):
    monkeypatch.setenv("TASFT_CACHE", str(tmp_path))
    Server(echo.base_url).ask("echo", says("a"), send, "asking")
    with closing(sqlite3.connect(tmp_path / "replies.sqlite")) as db, db:
        named = json.dumps([echo.base_url, "echo", {"say": "a"}], sort_keys=True)
        db.execute("UPDATE replies SET key = ?", (hashlib.sha256(named.encode()).hexdigest(),))
    assert Server(echo.base_url).ask("echo", says("a"), send, "asking") == [{"said": "a"}]
    assert echo.asked.total() == 1


def test_a_chat_completion(api):
    def chat(client, request):
        return {"text": client.chat.completions.create(**request).choices[0].message.content}

    request = {"model": "any", "messages": [{"role": "user", "content": "abc"}]}
    assert patient(api).ask("chat", [request], chat, "asking") == [{"text": "cba"}]


def test_the_waits_double_with_jitter_and_heed_the_server(echo):
    echo.mishaps, echo.share = ("500",), 1
    server = patient(echo, wait=1.0, attempts=5)
    assert server.ask("echo", says("a"), send, "asking") == [Failure("the server says 500, 5 times")]
    assert len(server.waited) == 4
    assert all(2**i / 2 <= waited <= 2**i for i, waited in enumerate(server.waited))

    def busy(after):
        return lambda handler, body: handler.send(429, "{}", Retry_After=after)

    for after, least, most in (("7", 7, 7), (email.utils.formatdate(time.time() + 50), 30, 50), ("9999", 120, 120)):
        echo.respond = busy(after)
        server = patient(echo, attempts=2)
        assert server.ask("echo", says("a"), send, "asking") == [Failure("the server says 429, 2 times")]
        assert least <= server.waited[0] <= most
        # whoever asks next waits until then, too
        assert len(server.waited) == 2 and 0 < server.waited[1] <= server.waited[0]


def test_too_many_requests_is_no_failure_while_others_are_answered(echo):
    """Of each five requests one gets through: with six attempts for each, every fourth would fail."""
    answering, turns = echo.respond, iter(range(10**6))

    def limited(handler, body):
        if next(turns) % 5:
            handler.send(429, '{"error": {"message": "limit"}}')
        else:
            answering(handler, body)

    echo.respond = limited
    server = Server(echo.base_url, attempts=6, concurrency=8, wait=0.001)
    wanted = [str(i) for i in range(60)]
    assert server.ask("echo", says(*wanted), send, "asking") == [{"said": x} for x in wanted]


@pytest.mark.parametrize("mishap", ["429", "429 wait", "500", "garbage", "other json", "half", "close", "hang"])
def test_each_mishap_is_tried_again_and_then_named(echo, mishap):
    echo.mishaps, echo.share = (mishap,), 1
    settings = {"attempts": 2, "timeout": 0.3 if mishap == "hang" else 20.0}
    [failure] = patient(echo, **settings).ask("echo", says("a"), send, "asking")
    assert echo.happened[mishap] == 2
    assert failure.reason.endswith(", 2 times")
    assert failure.reason.removesuffix(", 2 times") in (
        "the server says 429: slow down",
        "the server says 429",
        "the server says 500",
        "the reply is garbage: Expecting value: line 1 column 1 (char 0)",
        "the reply is garbage: nothing said",
        "the connection broke",
        "no reply within 0.3 s",
    )
    echo.mishaps = ()
    assert patient(echo).ask("echo", says("a"), send, "asking") == [{"said": "a"}]  # a failure is not kept


def refusing(api, status, message, **more):
    """Every request that says "no" is refused."""
    api.answers[PATH] = lambda request: (
        {"status": status, "error": {"message": message, **more}} if request["say"] == "no" else {"said": "yes"}
    )


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_bad_request_fails_alone_and_at_once(echo, status):
    refusing(echo, status, "too\nlong")
    server = patient(echo)
    assert server.ask("echo", says("yes", "no"), send, "asking") == [
        {"said": "yes"},
        Failure(f"the server says {status}: too long", again=False),
    ]
    assert server.waited == []


def test_a_setting_that_the_model_does_not_take_ends_everything_soon(echo):
    bad = says(*(f"no {i}" for i in range(500)))
    echo.answers[PATH] = lambda request: {"status": 400, "error": {"message": "no temperature, please"}}
    with pytest.raises(
        UserError, match=r"takes none of the requests \(the server says 400: no temperature, please\): mend"
    ):
        patient(echo).ask("echo", bad, send, "asking")
    assert echo.asked.total() < REFUSED + 2 * 8
    server = patient(echo, concurrency=1)
    refused = [Failure("the server says 400: too long", again=False)] * 30
    echo.answers[PATH] = lambda request: (
        {"said": "yes"} if request["say"] == "yes" else {"status": 400, "error": {"message": "too long"}}
    )
    assert server.ask("echo", says("yes"), send, "asking") == [{"said": "yes"}]
    assert server.ask("echo", says("yes", *(f"no {i}" for i in range(30))), send, "asking") == [
        {"said": "yes"},
        *refused,
    ]


@pytest.mark.parametrize(("status", "again"), [(400, False), (404, True)])
def test_refusals_that_come_before_a_slow_answer_end_nothing(echo, status, again):
    refusals, many = threading.Semaphore(0), REFUSED if status == 400 else 1

    def slow(request):
        if request["say"] != "yes":
            refusals.release()
            return {"status": status, "error": {"message": "too long"}}
        assert all(refusals.acquire(timeout=10) for _ in range(many))
        time.sleep(0.1)  # by now they have been read
        return {"said": "yes"}

    echo.answers[PATH] = slow
    refused = [Failure(f"the server says {status}: too long", again)] * 20
    wanted = says("yes", *(f"no {i}" for i in range(20)))
    assert patient(echo, concurrency=4).ask("echo", wanted, send, "asking") == [{"said": "yes"}, *refused]


def test_a_key_that_is_not_accepted_ends_everything(echo, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1")
    refusing(echo, 401, "Incorrect API key provided: sk-secret-1")
    with pytest.raises(UserError, match=r"/v1 does not accept the key \(401\): set OPENAI_API_KEY to one") as caught:
        patient(echo, concurrency=1).ask("echo", says("yes", *["no"] * 3), send, "asking")
    assert "sk-secret-1" not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None
    assert echo.asked.total() == 2
    assert patient(echo).ask("echo", says("yes"), send, "asking") == [{"said": "yes"}]
    assert echo.asked.total() == 2  # kept, though the call failed


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (403, r"does not accept the key \(403\)"),
        (404, r"the server says 404: no such model: check judge\.x\.base_url and the name of the model"),
    ],
)
def test_a_refusal_ends_everything_unless_others_are_answered(echo, status, sentence):
    refusing(echo, status, "no such model")
    with pytest.raises(UserError, match=sentence):
        patient(echo, node="judge.x").ask("echo", says("no"), send, "asking")
    server = patient(echo, concurrency=1)
    failure = Failure(f"the server says {status}: no such model")
    assert server.ask("echo", says("yes", "no"), send, "asking") == [{"said": "yes"}, failure]
    assert server.ask("echo", says("yes", "no"), send, "asking") == [{"said": "yes"}, failure]  # also when resumed
    assert server.ask("echo", says("yes", "no", "yes "), send, "asking") == [{"said": "yes"}, failure, {"said": "yes"}]
    asked = echo.asked.total()
    echo.answers[PATH] = lambda request: {"status": status, "error": {"message": "no such model"}}
    server.node = "judge.x"
    with pytest.raises(UserError, match=sentence):  # not even what was answered before
        server.ask("echo", says("yes", *(f"no {i}" for i in range(50))), send, "asking")
    assert echo.asked.total() - asked <= 3


def test_an_empty_account_ends_everything(echo):
    refusing(echo, 429, "You exceeded your current quota", code="insufficient_quota")
    with pytest.raises(UserError, match=r"the account of OPENAI_API_KEY at .* is empty"):
        patient(echo).ask("echo", says("no"), send, "asking")


def test_a_server_that_does_not_answer_ends_everything(api):
    with pytest.raises(UserError, match=r"^http://127\.0\.0\.1:9/v1 cannot be reached: check the address"):
        Server("http://127.0.0.1:9/v1/").ask("echo", says(*"abc"), send, "asking")


def test_a_server_that_only_fails_is_given_up(echo):
    echo.mishaps, echo.share = ("500",), 1
    with pytest.raises(UserError, match=r"fails again and again \(the server says 500\): give the same command again"):
        patient(echo, attempts=2, concurrency=4).ask("echo", says(*map(str, range(100))), send, "asking")
    assert 2 * GIVE_UP <= echo.asked.total() < 2 * (GIVE_UP + 10)


def unreadable(client, request):
    reply = send(client, request)
    if reply["said"].startswith("?"):
        raise Unreadable("a question")
    return reply


def test_a_model_that_does_not_say_what_it_should_is_asked_again_at_once(echo):
    server = patient(echo, concurrency=1)
    said = server.ask("read", says("?", "a"), unreadable, "asking")
    assert said == [Failure("the reply cannot be read: a question, 3 times"), {"said": "a"}]
    assert server.waited == []
    assert sorted(echo.asked.values()) == [1, 3]
    replies = iter(["?", "b"])
    echo.answers[PATH] = lambda request: {"said": next(replies)}
    assert server.ask("read", says("?"), unreadable, "asking") == [{"said": "b"}]  # nothing had been kept


def test_a_model_that_never_says_what_it_should_is_no_broken_server(echo):
    asked = says(*(f"?{i}" for i in range(2 * GIVE_UP)))
    said = patient(echo, asks=1).ask("read", asked, unreadable, "asking")
    assert said == [Failure("the reply cannot be read: a question, 1 times")] * (2 * GIVE_UP)


def test_at_most_so_many_requests_are_in_flight(echo):
    counting, flying, most = threading.Lock(), [], []
    five = threading.Barrier(5, timeout=100)  # nobody is answered before five have come

    def slow(request):
        with counting:
            flying.append(1)
            most.append(len(flying))
        five.wait()
        with counting:
            flying.pop()
        return {"said": request["say"]}

    echo.answers[PATH] = slow
    patient(echo, concurrency=5).ask("echo", says(*map(str, range(40))), send, "asking")
    assert max(most) == 5


def test_a_minute_holds_so_many_tokens_and_no_more():
    minute = _Minute(100)
    # at second 0: two of 40 fit, the next two a minute later; 150 need a minute of their own, as does what follows them
    assert [minute.wait(count, now=0) for count in (40, 40, 40, 40, 150, 10)] == [0, 0, 60, 60, 120, 180]
    assert [minute.wait(count, now=190) for count in (90, 10)] == [0, 50]  # the 10 of second 180 and 90 are all
    minute = _Minute(100)
    assert [minute.wait(50, now) for now in (0, 30, 40, 95)] == [0, 0, 20, 0]


def test_all_threads_and_calls_share_the_minute(echo):
    [request] = says("a")
    assert tokens(request) == 3  # the 12 characters of {"say": "a"} are three tokens; 200 may be the answer
    assert tokens({"say": "a", "max_tokens": 200}) == math.ceil(31 / 4) + 200
    server = patient(echo, tokens_per_minute=6, concurrency=4)
    server.ask("echo", says(*"abcde"), send, "asking")
    server.ask("echo", says(*"ef"), send, "asking")  # e is kept and costs nothing
    assert sorted(server.waited) == pytest.approx([60, 60, 120, 120], abs=1)
    with pytest.raises(UserError, match=r"^tokens_per_minute=0: it should be 1 or more, or null: no limit"):
        patient(echo, tokens_per_minute=0)


def test_a_conversation_may_be_answered_several_times(api):
    replies = iter("abcd")
    api.answers["/v1/chat/completions"] = lambda request: {
        "choices": [{"message": {"content": next(replies)}, "finish_reason": "length"}]
    }
    hello = [{"role": "user", "content": "Hello"}]
    server = patient(api, concurrency=1)
    said = server.chat("any", [hello, hello, hello], "asking", draws=[0, 1, 0], temperature=1.0, max_tokens=None)
    assert [each["content"] for each in said] == ["a", "b", "a"]
    assert {each["finish_reason"] for each in said} == {"length"}
    assert server.chat("any", [hello], "asking", draws=[1], temperature=1.0)[0]["content"] == "b"
    [sent] = api.asked  # the number stays at home
    assert json.loads(sent) == {"model": "any", "messages": hello, "temperature": 1.0}


def test_a_bug_in_send_is_not_retried(echo):
    def broken(client, request):
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        patient(echo).ask("echo", says("a"), broken, "asking")


def test_settings_that_cannot_work_are_one_sentence(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match=r"^judge\.x needs a key: set OPENAI_API_KEY, or give judge\.x\.base_url=<a"):
        Server(node="judge.x")
    with pytest.raises(UserError, match=r"^judge\.x\.base_url=localhost:8000 is no web address: give one such as"):
        Server("localhost:8000", node="judge.x")
    for given in ({}, {"base_url": "http://localhost:8000/v1"}):  # a key in the place of its name is repeated nowhere
        with pytest.raises(UserError, match=r"^judge\.x\.key should be the name of an environment variable") as said:
            Server(key="sk-abc123", node="judge.x", **given)
        assert "abc123" not in str(said.value)
    with pytest.raises(UserError, match="concurrency"):
        Server("http://localhost:8000/v1", concurrency=0)
    monkeypatch.setenv("MY_KEY", "abc")
    assert Server(key="MY_KEY").base_url == "https://api.openai.com/v1"


def test_a_damaged_cache_is_named(echo, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/replies.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match=r"cache/replies\.sqlite cannot be used \(file is not a database\): delete it"):
        patient(echo).ask("echo", says("a"), send, "asking")


ASKING = """
    import sys
    from tasft.remote import Server
    def send(client, request):
        return {"said": client.post("/echo", body=request, cast_to=object)["said"]}
    Server(sys.argv[1]).ask("echo", [{"say": str(i)} for i in range(200)], send, "asking")
"""


def interrupted(api, how):
    """Run ASKING until 30 answers are out, send it `how`; the seconds it took to end."""
    command = [sys.executable, "-c", textwrap.dedent(ASKING), api.base_url]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs are deaf to Ctrl-C
    asking = subprocess.Popen(command, stderr=subprocess.DEVNULL, preexec_fn=heard)
    while api.answered.total() < 30 and asking.poll() is None:
        time.sleep(0.005)
    asking.send_signal(how)
    start = time.monotonic()
    code = asking.wait(timeout=60)
    return code, time.monotonic() - start


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_what_was_answered_outlives_the_process(echo, tmp_path, how):
    slow = threading.Event()
    answer = echo.answers[PATH]
    # after 60 answers the server hangs: Ctrl-C is not to wait for it
    echo.answers[PATH] = lambda request: (slow.wait(30 if echo.answered.total() >= 60 else 0.02), answer(request))[1]
    code, seconds = interrupted(echo, how)
    assert code != 0 and seconds < 25
    slow.set()
    with sqlite3.connect(tmp_path / "cache/replies.sqlite") as db:
        [kept] = db.execute("SELECT COUNT(*) FROM replies").fetchone()
    assert 30 - 8 <= kept < 200
    echo.asked.clear()
    assert patient(echo).ask("echo", says(*map(str, range(200))), send, "asking") == [
        {"said": str(i)} for i in range(200)
    ]
    assert echo.asked.total() == 200 - kept and set(echo.asked.values()) == {1}
