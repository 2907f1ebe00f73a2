"""OpenAI-compatible servers: many requests at once, tried again where that may help, each reply kept on disk."""

import email.utils
import hashlib
import json
import logging
import math
import os
import queue
import random
import re
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasft.errors import Unavailable, UserError
from tasft.progress import Progress
from tasft.result.rows import writing
from tasft.source import WEB, cache_folder

if TYPE_CHECKING:
    import openai  # slow to import

OPENAI = "https://api.openai.com/v1"
OWN = "a server of one's own"
NAME = re.compile(r"[A-Z_][A-Z0-9_]*")  # of a variable that may hold a key
RETRIED = (408, 409, 429)  # and every 5xx
NEVER = (400, 413, 422)  # the request is bad, as one that is too long: no server's day makes it better
DRAW = "draw"  # of a request that is asked several times; the server does not see it
LONGEST_WAIT = 120.0  # seconds between two attempts, whatever a server asks for
GIVE_UP = 20  # so many requests in a row that failed in every attempt: the server is broken, not the requests
REFUSED = 5  # so many requests that the server calls bad, and none answered: it will take none of them
KEPT = "what has been answered is kept"
GO_ON = f"give the same command again later; {KEPT}"

Reply = dict[str, Any]
Message = dict[str, str]  # role and content, one of a conversation
Send = Callable[["openai.OpenAI", dict[str, Any]], Reply]


@dataclass(frozen=True)
class Failure:
    """Why a request has no reply that can be used, in one line; it is kept nowhere.

    again: whether the same request may have one another time, as after a server's bad day.
    """

    reason: str
    again: bool = True


class Unreadable(ValueError):
    """A sound reply in which the model does not say what it was asked for."""


def check_key(key: str, said: str) -> None:
    """UserError where `key` is no name of a variable; `said` names the config's node. Never repeats it."""
    if not NAME.fullmatch(key):
        raise UserError(
            f"{said}key should be the name of an environment variable (capitals, digits, _) that holds the key,"
            " such as OPENAI_API_KEY, never the key itself"
        )


class Server:
    """An OpenAI-compatible server: OpenAI's own where `base_url` is None, else `http://.../v1`.

    key: the *name* of the environment variable that holds the API key. The key itself goes to `base_url` and
    nowhere else. A server of one's own may need none.
    node: the config's name for what uses the server, as `judge.moderation`, for messages.
    timeout: seconds for one attempt. wait: seconds, at most, before the second attempt; each later one doubles it.
    asks: so often a model with a temperature is asked whose reply is Unreadable. tokens_per_minute: of requests that
    are begun within any 60 seconds, as `tokens` estimates them; None: no limit.
    Unavailable where OpenAI's own server has no key; UserError where base_url is no web address.
    """

    def __init__(
        self,
        base_url: str | None = None,
        key: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        attempts: int = 6,
        timeout: float = 60.0,
        wait: float = 1.0,
        asks: int = 3,
        tokens_per_minute: int | None = None,
        node: str = "",
    ) -> None:
        said = f"{node}." if node else ""
        check_key(key, said)
        if base_url is None and not os.environ.get(key):
            raise Unavailable(
                f"{node or 'OpenAI'} needs a key: set {key}, or give {said}base_url=<a server of your own>"
            )
        if base_url is not None and not WEB.match(base_url):
            raise UserError(f"{said}base_url={base_url} is no web address: give one such as http://localhost:8000/v1")
        if concurrency < 1 or attempts < 1 or asks < 1 or timeout <= 0:
            raise UserError(
                f"{said}concurrency, {said}attempts and {said}asks should be 1 or more, {said}timeout more than 0"
            )
        if tokens_per_minute is not None and tokens_per_minute < 1:
            raise UserError(f"{said}tokens_per_minute={tokens_per_minute}: it should be 1 or more, or null: no limit")
        self.base_url = (base_url or OPENAI).rstrip("/")
        self.key, self.node = key, node
        self.concurrency, self.attempts, self.timeout, self.wait = concurrency, attempts, timeout, wait
        self.asks, self.minute = asks, _Minute(tokens_per_minute) if tokens_per_minute else None
        self.sleep: Callable[[float], object] = time.sleep

    def ask(self, kind: str, requests: Sequence[dict[str, Any]], send: Send, title: str) -> list[Reply | Failure]:
        """The reply to each of `requests`, in order, or why there is none. Equal requests are one request.

        send: makes one call with the client and gives the part of the reply that is needed, as JSON-able objects;
        ValueError where the reply is garbage. kind: names what `send` does. A reply is on disk, in cache_folder(),
        before anything else happens to it, and is never asked for again: neither of this server nor, unless it is
        OpenAI's, of another that is sent the same, as the name of the model says who answers, not where it is served.

        UserError where no request can work: a refused key, an address that does not answer, an empty account, a
        setting that the model does not take.
        """
        if not requests:
            return []
        place = OPENAI if self.base_url == OPENAI else OWN
        keys = [_digest(place, kind, request) for request in requests]
        kept = _Kept(cache_folder() / "replies.sqlite")
        replies: dict[str, Reply | Failure] = {}
        for key, request in zip(keys, requests, strict=True):
            reply = kept.get(key) or kept.get(_digest(self.base_url, kind, request))  # as earlier versions called it
            if reply is not None:
                replies[key] = reply
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in replies}
        known = next((request for key, request in zip(keys, requests, strict=True) if key in replies), None)
        with Progress(len(set(keys)), title, "request", start=len(replies)) as bar:
            if missing:
                for key, outcome in _Asking(self, send, kept, known).all(missing):
                    replies[key] = outcome
                    bar.advance()
        kept.close()
        return [replies[key] for key in keys]

    def chat(
        self,
        model: str,
        conversations: Sequence[Sequence[Message]],
        title: str,
        read: Callable[[Reply], object] = lambda reply: None,
        kind: str = "chat",
        draws: Sequence[int] | None = None,
        **options: Any,
    ) -> list[Reply | Failure]:
        """What the chat model says next in each of `conversations`: {"content": text, "finish_reason": its end}.

        options: temperature, max_tokens and others of the API; those that are None are not sent. With logprobs there
        is also {"first": {token: log-probability}} of the reply's first token.
        read: raises Unreadable where the model does not say what it should. At temperature 0 it would say the same
        again: such a reply is kept as any other, and a Failure each time; else it is not, and the model is asked again,
        at once. An empty reply is one of them. kind: names `read`. draws: a number for each conversation; the reply to
        a conversation is kept by its number, which the server does not see, so that a model with a temperature may be
        asked again.
        """
        given = {name: value for name, value in options.items() if value is not None}
        repeats = given.get("temperature") == 0
        numbers = [{}] * len(conversations) if draws is None else [{DRAW: number} for number in draws]
        requests = [
            {"model": model, "messages": list(conversation), **given, **number}
            for conversation, number in zip(conversations, numbers, strict=True)
        ]

        def send(client: "openai.OpenAI", request: dict[str, Any]) -> Reply:
            reply = complete(client, {name: value for name, value in request.items() if name != DRAW})
            if not repeats:
                _understood(reply, read)
            return reply

        def said(reply: Reply | Failure) -> Reply | Failure:
            try:
                return reply if isinstance(reply, Failure) else _understood(reply, read)
            except Unreadable as error:
                return Failure(f"the reply cannot be read: {error}", again=False)

        return [said(reply) for reply in self.ask(kind, requests, send, title)]

    def client(self) -> "openai.OpenAI":
        """What speaks to the server, with the key."""
        import openai

        for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):
            logging.getLogger(name).setLevel(logging.WARNING)  # they log every request
        return openai.OpenAI(
            api_key=os.environ.get(self.key) or "none", base_url=self.base_url, timeout=self.timeout, max_retries=0
        )

    def models(self) -> dict[str, dict[str, Any]]:
        """What the server says of each of its models, by name, see vLLM's /v1/models; UserError where it does not."""
        client = self.client()
        try:
            listed = client.get("/models", cast_to=object)
            return {str(card["id"]): dict(card) for card in listed["data"]}  # type: ignore[index]
        except Exception as caught:  # of the client, or a reply of another form
            error = caught  # handled outside, so that no exception below carries its text, which may hold the key
        raise UserError(
            f"{self.base_url} does not list its models ({self.reason(error)[0]}): check the address, the key and the"
            " server"
        )

    def reason(self, error: Exception) -> tuple[str, int | None]:
        """In one line what went wrong, without the key, and the HTTP status if it was one."""
        import openai

        status = error.status_code if isinstance(error, openai.APIStatusError) else None
        if isinstance(error, openai.APITimeoutError):
            said = f"no reply within {self.timeout:g} s"
        elif isinstance(error, openai.APIConnectionError):
            said = "the connection broke"
        elif status is not None:
            body = error.body if isinstance(error, openai.APIStatusError) else None
            message = str(body.get("message") or "") if isinstance(body, dict) else ""
            said = f"the server says {status}" + (f": {message}" if message else "")
        elif isinstance(error, Unreadable):
            said = f"the reply cannot be read: {error}"
        else:
            said = f"the reply is garbage: {error}"
        secret = os.environ.get(self.key)
        if secret:
            said = said.replace(secret, "<key>")
        return " ".join(said.split())[:200], status


def complete(client: "openai.OpenAI", request: dict[str, Any]) -> Reply:
    """What `Server.chat` gives for one request; ValueError where the server sent none."""
    reply = client.chat.completions.create(**request)
    try:  # the client's types check nothing
        choice: Any = reply.choices[0]
    except (AttributeError, LookupError, TypeError):
        choice = None
    message, finish = getattr(choice, "message", None), getattr(choice, "finish_reason", None)
    content = getattr(message, "content", None) or getattr(message, "refusal", None) or ""
    if message is None or not isinstance(content, str):
        raise ValueError("it has no text")
    said: Reply = {"content": content, "finish_reason": finish if isinstance(finish, str) else None}
    return said | {"first": _first_token(choice)} if request.get("logprobs") and content else said


def _understood(reply: Reply, read: Callable[[Reply], object]) -> Reply:
    """The reply; Unreadable where it is empty or `read` cannot read it, which says so where a limit cut it off."""
    try:
        if not reply["content"]:
            raise Unreadable("it is empty")
        read(reply)
    except Unreadable as error:
        if reply["finish_reason"] == "length":
            raise Unreadable(f"{error}, cut off at max_tokens") from None
        raise
    return reply


def _first_token(choice: Any) -> dict[str, float]:
    """The log-probabilities of the likeliest first tokens of a reply; ValueError where it has none."""
    try:
        found = {each.token: float(each.logprob) for each in choice.logprobs.content[0].top_logprobs}
    except (AttributeError, LookupError, TypeError, ValueError):
        found = {}
    if not found or not all(isinstance(token, str) for token in found):
        raise ValueError("it has no log-probabilities")
    return {token: logprob for token, logprob in found.items() if math.isfinite(logprob)}


def tokens(request: dict[str, Any]) -> int:
    """About how many tokens a request costs: a quarter of its characters as JSON, and as many as it may be answered."""
    answer = request.get("max_tokens") or request.get("max_completion_tokens") or 0
    return math.ceil(len(json.dumps(request, ensure_ascii=False)) / 4) + int(answer)


class _Minute:
    """A limit on the tokens of any 60 seconds: first come, first served, for all threads."""

    def __init__(self, limit: int) -> None:
        self.limit, self.lock = limit, threading.Lock()
        self.begun: deque[tuple[float, int]] = deque()  # when, and tokens; also those that are still waiting
        self.last = -math.inf

    def wait(self, count: int, now: float) -> float:
        """Seconds until a request of `count` tokens may begin, which then counts as begun.

        One of more than the limit begins once the minute before it is empty.
        """
        with self.lock:
            start = max(now, self.last)
            while self.begun and (
                self.begun[0][0] <= start - 60 or sum(each for _, each in self.begun) + count > self.limit
            ):
                start = max(start, self.begun.popleft()[0] + 60)
            self.begun.append((start, count))
            self.last = start
            return start - now


class _Asking:
    """One call of `ask`: the threads, and what they know of each other."""

    def __init__(self, server: Server, send: Send, kept: "_Kept", known: dict[str, Any] | None) -> None:
        self.server, self.send, self.kept, self.client = server, send, kept, server.client()
        self.known, self.probing = known, threading.Lock()  # a request that the server has answered before
        self.flying, self.landing = 0, threading.Condition()  # requests that are under way, with all their attempts
        self.doubted = False  # whether the server takes any request: then no other is begun until it has answered one
        self.answered = 0  # replies so far; races between threads do no harm to this use of it
        self.failed_in_a_row = 0
        self.refused = 0
        self.not_before = 0.0  # time.monotonic(): the server asked everybody to wait
        self.stopped = False
        self.jitter = random.Random()  # the global one belongs to the run

    def all(self, missing: dict[str, dict[str, Any]]) -> Iterator[tuple[str, Reply | Failure]]:
        """Key and outcome of each request, as they come."""
        todo: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[str, Reply | Failure | BaseException]] = queue.SimpleQueue()
        for item in missing.items():
            todo.put(item)

        def work() -> None:
            while not self.stopped:
                try:
                    key, request = todo.get_nowait()
                except queue.Empty:
                    return
                with self.under_way():
                    try:
                        done.put((key, self.one(key, request)))
                    except BaseException as error:  # raised again in the caller's thread
                        done.put((key, error))

        try:
            for _ in range(min(self.server.concurrency, len(missing))):
                threading.Thread(target=work, daemon=True).start()  # daemon: Ctrl-C waits for no reply
            for _ in missing:
                key, outcome = done.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                yield key, outcome
        finally:
            with self.landing:
                self.stopped = True
                self.landing.notify_all()
        self.client.close()

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Counts what is done within as a request under way; waits for the end of doubts before."""
        with self.landing:
            self.landing.wait_for(lambda: self.stopped or self.answered or not self.doubted)
            self.flying += 1
        try:
            yield
        finally:
            with self.landing:
                self.flying -= 1
                self.landing.notify_all()

    def one(self, key: str, request: dict[str, Any]) -> Reply | Failure:
        """The reply, kept; or, once no further attempt may help, why there is none."""
        attempt, unread, wait, answered_before = 0, 0, self.server.wait / 2, self.answered
        while True:
            self.server.sleep(max(self.not_before - time.monotonic(), 0))
            if self.server.minute is not None:
                self.server.sleep(self.server.minute.wait(tokens(request), time.monotonic()))
            try:
                reply = self.send(self.client, request)
                self.kept.put(key, reply)
                self.answered += 1
                self.failed_in_a_row = 0
                return reply
            except Exception as caught:
                error = caught  # handled outside, so that no exception below carries its text, which may hold the key
            reason, status = self.server.reason(error)
            if not self.may_help(error, reason, status):
                return Failure(reason, again=status not in NEVER)
            if isinstance(error, Unreadable):
                unread += 1
                self.answered += 1
                self.failed_in_a_row = 0  # the server works
                if unread >= self.server.asks or self.stopped:
                    return Failure(f"{reason}, {unread} times")
                continue
            asked_to_wait = _retry_after(error)
            if status == 429 and self.answered > answered_before:
                attempt, answered_before = 0, self.answered  # busy with others: attempts count while nobody is answered
            else:
                attempt, wait = attempt + 1, 2 * wait
            if attempt >= self.server.attempts or self.stopped:
                self.failed_in_a_row += 1
                if self.failed_in_a_row >= GIVE_UP:
                    raise UserError(f"{self.server.base_url} fails again and again ({reason}): {GO_ON}")
                return Failure(f"{reason}, {attempt} times")
            pause = min(wait * self.jitter.uniform(0.5, 1), LONGEST_WAIT)
            if asked_to_wait is not None:
                pause = max(pause, min(asked_to_wait, LONGEST_WAIT))
                self.not_before = max(self.not_before, time.monotonic() + pause)
            self.server.sleep(pause)

    def may_help(self, error: Exception, reason: str, status: int | None) -> bool:
        """Whether another attempt may help; UserError where no request of this call can work."""
        import openai

        server, said = self.server, f"{self.server.node}." if self.server.node else ""
        refused = status in (403, 404) and self.takes_none()
        if status == 401 or (status == 403 and refused):
            raise UserError(f"{server.base_url} does not accept the key ({status}): set {server.key} to one that may")
        if refused:
            raise UserError(f"{server.base_url}: {reason}: check {said}base_url and the name of the model")
        if isinstance(error, openai.APIStatusError) and error.code == "insufficient_quota":
            raise UserError(
                f"the account of {server.key} at {server.base_url} is empty: pay, or use another key; {KEPT}"
            )
        # By name: the client's HTTP library has changed its own.
        if type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout") and not self.answered:
            raise UserError(f"{server.base_url} cannot be reached: check the address, the server and the network")
        if status is not None and (status in RETRIED or status >= 500):
            return True
        if status is not None:
            self.refused += 1
            if self.refused >= REFUSED and self.takes_none():
                raise UserError(
                    f"{server.base_url} takes none of the requests ({reason}): mend {said}model, or what is sent"
                )
            return False
        if isinstance(error, openai.APIConnectionError | openai.APIResponseValidationError | ValueError):
            return True
        raise error

    def takes_none(self) -> bool:
        """Whether the server has answered nothing, after all that is under way beside the request that asks this.

        Then it is asked, once, what it answered in an earlier call: it may refuse only what is sent now.
        """
        with self.landing:
            self.doubted, self.flying = True, self.flying - 1
            self.landing.notify_all()
            self.landing.wait_for(lambda: self.stopped or self.answered or not self.flying)
        with self.probing:
            known, self.known = self.known, None
            if known is not None and not self.answered:
                with suppress(Exception):
                    self.send(self.client, known)
                    self.answered += 1
        with self.landing:
            self.flying += 1
            self.landing.notify_all()
        return not self.answered


class _Kept:
    """The replies on disk: one SQLite file, for all threads and for other processes beside this one."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, threading.Lock()
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with self.sentence():
            self.db = sqlite3.connect(path, timeout=60, check_same_thread=False, isolation_level=None)
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")

    @contextmanager
    def sentence(self) -> Iterator[None]:
        """Turns the database's refusal into one sentence."""
        try:
            yield
        except sqlite3.Error as error:
            raise UserError(f"{self.path} cannot be used ({error}): delete it, or mend its folder") from None

    def get(self, key: str) -> Reply | None:
        with self.lock, self.sentence():
            found = self.db.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return None if found is None else json.loads(found[0])

    def put(self, key: str, reply: Reply) -> None:
        """ValueError where the reply is not JSON-able."""
        text = json.dumps(reply, allow_nan=False)
        with self.lock, self.sentence():
            self.db.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, text))

    def close(self) -> None:
        self.db.close()


def _digest(base_url: str, kind: str, request: dict[str, Any]) -> str:
    """The name under which a reply is kept; nothing of the request can be read off it."""
    return hashlib.sha256(json.dumps([base_url, kind, request], sort_keys=True).encode()).hexdigest()


def _retry_after(error: Exception) -> float | None:
    """The seconds that the server asks to wait: a number or, as HTTP allows, a date."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    given = headers.get("retry-after")
    if given is None:
        return None
    with suppress(ValueError):
        return max(float(given), 0.0)
    with suppress(ValueError):
        return max(email.utils.parsedate_to_datetime(given).timestamp() - time.time(), 0.0)
    return None
