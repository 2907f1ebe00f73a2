"""A stand-in for W&B's server on this machine: it shows what the client sends, nothing of W&B's own behaviour."""

import json
import re
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "0123456789abcdef0123456789abcdef01234567"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle(self):
        with suppress(OSError):  # the client hangs up
            super().handle()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.stopped:  # connections outlive their server
            raise ConnectionResetError
        self.server.state.bodies.append(body)
        if self.path.startswith("/graphql"):
            asked = json.loads(body)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            with self.server.state.lock:
                answer = self.server.state.answer(operation[1] if operation else "", asked.get("variables") or {})
            return self.send({"data": answer})
        if self.path.endswith("/file_stream"):
            with self.server.state.lock:
                self.server.state.stream(self.path.split("/")[-2], json.loads(body))
        return self.send({})

    do_PUT = do_POST

    def do_GET(self):
        self.send({}, 404)

    def send(self, answer, status=200):
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


class _Serving(ThreadingHTTPServer):
    daemon_threads, stopped = True, False


class WandbServer:
    """`runs`: by id what was upserted, with `history` (rows in order) and `summary`. `bodies`: all that was sent."""

    def __init__(self):
        self.lock, self.port = threading.Lock(), 0
        self.runs, self.bodies = {}, []
        self.start()

    def start(self):
        self.serving = _Serving(("127.0.0.1", self.port), _Handler)
        self.serving.state = self
        self.port = self.serving.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.serving.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self):
        self.serving.stopped = True
        self.serving.shutdown()
        self.serving.server_close()

    def stream(self, run, sent):
        files, kept = sent.get("files") or {}, self.runs[run]
        if "wandb-history.jsonl" in files:
            part = files["wandb-history.jsonl"]
            kept["history"][part["offset"] :] = [json.loads(line) for line in part["content"]]
        if "wandb-summary.json" in files:
            kept["summary"] = json.loads(files["wandb-summary.json"]["content"][-1])
        if sent.get("complete"):
            kept["exitcode"] = sent["exitcode"]

    def answer(self, operation, given):
        project = {"id": "P", "name": given.get("project") or given.get("name"), "entity": {"id": "E", "name": "team"}}
        if operation == "Viewer":
            viewer = {"id": "U", "username": "someone", "entity": "team", "flags": "{}", "teams": {"edges": []}}
            return {"viewer": viewer}
        if operation == "UpsertBucket":
            name, new = given["name"], given["name"] not in self.runs
            run = self.runs.setdefault(name, {"history": [], "summary": {}, "sessions": 0})
            run.update({key: value for key, value in given.items() if value is not None})
            run["sessions"] += given.get("program") is not None
            bucket = {"id": f"B{name}", "name": name, "displayName": run.get("displayName"), "project": project}
            return {"upsertBucket": {"bucket": bucket | {"config": run.get("config")}, "inserted": new}}
        if operation == "RunResumeStatus":
            run = self.runs.get(given["name"])
            return {"model": project | {"bucket": run and self._status(given["name"], run)}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/put/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "R", "uploadHeaders": [], "files": files}}
        if operation == "ArtifactType":
            return {"project": {"artifact": None}}
        if operation == "CreateArtifact":  # answered as one that is there already
            return {"createArtifact": {"artifact": {"id": "A", "state": "COMMITTED", "artifactSequence": {"id": "S"}}}}
        if operation == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        return {}

    def _status(self, name, run):
        return {
            "id": f"B{name}", "name": name, "displayName": run.get("displayName"), "tags": run.get("tags"),
            "historyLineCount": len(run["history"]), "eventsLineCount": 0, "logLineCount": 0, "eventsTail": "[]",
            "historyTail": json.dumps([json.dumps(row) for row in run["history"][-1:]]), "config": run.get("config"),
            "summaryMetrics": json.dumps(run["summary"]), "wandbConfig": '{"t": 1}',
        }  # fmt: skip
