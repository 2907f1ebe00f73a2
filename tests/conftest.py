"""Web servers on this machine: files, a Hugging Face hub, an OpenAI-compatible API that has its bad moments."""

import hashlib
import json
import random
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from tasft import hub

# files of few, long tests: one of them alone at the end would leave the other workers idle
LONG = ("test_demo.py", "test_slurm.py", "test_end_to_end.py", "test_sweep.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG)


class Answering(BaseHTTPRequestHandler):
    """Serves `files` by path, with the headers `found`; to all else `refusal` is the answer: a status and headers."""

    files: ClassVar[dict[str, bytes]] = {}
    found: ClassVar[dict[str, str]] = {}
    refusal: ClassVar[tuple[int, dict[str, str]]] = (404, {})

    def do_GET(self):
        content = self.files.get(self.path.partition("?")[0])
        self.send_response(200 if content is not None else self.refusal[0])
        tag = {"ETag": f'"{hashlib.sha256(content or b"").hexdigest()}"'}
        headers = self.found | tag if content is not None else self.refusal[1]
        for key, value in {**headers, "Content-Length": str(len(content or b""))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content or b"")

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """A server on this machine: its address, its handler, and how to stop it."""
    handler = type("Handler", (Answering,), {"files": {}})
    served = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    served.handler = handler
    served.address = f"http://127.0.0.1:{served.server_port}"
    yield served
    served.shutdown()
    served.server_close()


@pytest.fixture
def hub_at(tmp_path, monkeypatch):
    """Makes an address the hub, with an empty cache; without a call there is no hub."""
    import datasets
    from huggingface_hub import constants, hf_api

    def at(address):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(hf_api.api, "endpoint", address)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)  # remembers the first address
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", address)
        hub.probe.cache_clear()

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    at("http://127.0.0.1:9")
    yield at
    hub.probe.cache_clear()


HUB_REFUSALS = {
    "gated": (403, {"X-Error-Code": "GatedRepo"}, "no access: accept its licence .* log in"),
    "private": (401, {"X-Error-Code": "RepoNotFound"}, "not on the Hugging Face hub, or no access: .* log in"),
    "forbidden": (403, {}, r"no access \(403\): log in"),
    "unknown": (404, {"X-Error-Code": "RepoNotFound"}, "not on the Hugging Face hub, or no access: check the id"),
}


@pytest.fixture(params=HUB_REFUSALS)
def refusing_hub(request, server, hub_at):
    """A hub that refuses everything: an id, and what the user should read."""
    status, headers, sentence = HUB_REFUSALS[request.param]
    server.handler.refusal = (status, headers)
    hub_at(server.address)
    return f"some/{request.param}", sentence


class SpeakingApi(BaseHTTPRequestHandler):
    """Hands each request to the server's `respond`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        answer = self.server.answers.get(self.path)
        self.send(200 if answer else 404, json.dumps(answer({}) if answer else {"error": {"message": "no such path"}}))

    def do_POST(self):
        self.server.respond(self, self.rfile.read(int(self.headers["Content-Length"])).decode())

    def send(self, status, body, **headers):
        content = body.encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def moderated(request):
    """A moderation result: scores from a hash of the text, flagged where it says "harm"."""
    text = request["input"]
    scores = [byte / 255 for byte in hashlib.sha256(text.encode()).digest()[:3]]
    result = {
        "flagged": "harm" in text,
        "category_scores": dict(zip(("hate", "illicit", "violence"), scores, strict=True)),
    }
    return {"id": "modr-1", "model": request["model"], "results": [result]}


def completed(request):
    """A chat completion that says the last message backwards."""
    message = {"role": "assistant", "content": request["messages"][-1]["content"][::-1]}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return {"id": "chat-1", "object": "chat.completion", "created": 0, "model": request["model"], "choices": choices}


class Api(ThreadingHTTPServer):
    """An OpenAI-compatible server.

    answers: by path, from the request to the reply. mishaps: what may happen instead, in `share` of the attempts,
    drawn by the request and how often it came, so that threads do not matter. Requests are counted as sent.
    """

    MISHAPS = ("429", "429 wait", "500", "garbage", "other json", "half", "close", "hang")

    def __init__(self):
        super().__init__(("127.0.0.1", 0), SpeakingApi)
        self.base_url = f"http://127.0.0.1:{self.server_port}/v1"
        self.answers = {"/v1/moderations": moderated, "/v1/chat/completions": completed}
        self.mishaps, self.share, self.seed = (), 0.5, 0
        self.asked, self.answered, self.keys, self.happened = Counter(), Counter(), set(), Counter()
        self.closing = threading.Event()
        self.counting = threading.Lock()

    def respond(self, handler, body):
        with self.counting:
            self.asked[body] += 1
            self.keys.add(handler.headers["Authorization"])
            draw = random.Random(f"{self.seed} {self.asked[body]} {body}")
        mishap = draw.choice(self.mishaps) if self.mishaps and draw.random() < self.share else None
        if mishap is None:
            if handler.path not in self.answers:
                return handler.send(404, json.dumps({"error": {"message": "no such path"}}))
            reply = self.answers[handler.path](json.loads(body))
            handler.send(reply.pop("status", 200), json.dumps(reply))
            with self.counting:
                self.answered[body] += 1
            return None
        with self.counting:
            self.happened[mishap] += 1
        if mishap == "429":
            handler.send(429, json.dumps({"error": {"message": "slow down"}}))
        elif mishap == "429 wait":
            handler.send(429, "{}", Retry_After="0.03")
        elif mishap == "500":
            handler.send(500, "oops", Content_Type="text/plain")
        elif mishap == "garbage":
            handler.send(200, "<html>")
        elif mishap == "other json":
            handler.send(200, '{"results": [{"flagged": "no"}], "choices": []}')
        elif mishap == "half":
            handler.send(200, '{"resul', Content_Length="500")
        elif mishap == "hang":
            self.closing.wait(30)
        handler.close_connection = mishap in ("half", "close", "hang")
        return None


@pytest.fixture
def api(tmp_path, monkeypatch):
    """An OpenAI-compatible server, and an empty cache."""
    monkeypatch.setenv("TASFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    served = Api()
    threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield served
    served.closing.set()
    served.shutdown()
    served.server_close()
