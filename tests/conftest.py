"""A web server on this machine, and a Hugging Face hub that is that server."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from tasft import hub


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
