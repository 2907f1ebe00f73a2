"""The command: in the tiny world, with a server that misbehaves, with a saved model; killed, and given again."""

import json
import re
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from transformers import LlamaConfig, LlamaForCausalLM

from tasft.config import CONF, register
from tasft.contrastive import _asked, contrastive
from tasft.errors import UserError
from tasft.generator.protocol import Generated
from tasft.generator.world import World
from tasft.model.scratch import train_tokenizer
from tasft.world.label import label_of
from tasft.world.splits import all_prompts

FOLDER = Path("data/contrastive/tiny")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TASFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return tmp_path


def run(*overrides, base=("experiment=demo", "contrastive.per_word=3")):
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        contrastive(compose("contrastive", overrides=[*base, *overrides]))
    return [json.loads(line) for line in (FOLDER / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]


def report():
    return json.loads((FOLDER / "report.json").read_text())


def test_the_tiny_world_has_right_answers_to_training_prompts_with_toxic_verbs(capsys):
    pairs = run()
    training = {prompt.text: prompt for prompt in all_prompts(0)["train"]}
    verbs = {training[pair["prompt"]].row["verb"] for pair in pairs}
    assert {"steal", "trick"} <= verbs
    assert len(pairs) == len({pair["prompt"] for pair in pairs}) == 3 * len(verbs)
    for pair in pairs:
        prompt = training[pair["prompt"]]
        assert prompt.group == "seeming"
        assert prompt.row["verb"] == pair["word"]
        assert label_of(prompt, pair["response"]) == "correct"
        assert (pair["prompter"], pair["answerer"]) == ("tiny world", "tiny world")
        assert pair["judges"] == {"oracle": {"score": 0.0, "label": "correct"}}
    said, words = report(), (FOLDER / "words.jsonl").read_text().splitlines()
    assert said["words"] == said["prompts"]["asked"] == len(words)
    assert said["prompts"]["without"] == {"none written": len(words) - len(verbs)}
    assert said["answers"]["kept"] == len(pairs)
    assert re.search(rf"none written +{len(words) - len(verbs)}", capsys.readouterr().out)


class Killed(BaseException):
    """Stands for a kill."""


def counted(method, name, asked):
    def counting(self, texts, **keys):
        asked.update((name, text) for text in texts)
        return method(self, texts, **keys)

    return counting


def test_killed_at_any_write_the_same_command_goes_on_to_the_same_bytes(monkeypatch):
    run()
    whole = {file.name: file.read_bytes() for file in FOLDER.glob("*.jsonl")}
    asked: Counter[str] = Counter()
    monkeypatch.setattr(World, "batch_size", 7, raising=True)
    for name in ("write", "answer"):
        monkeypatch.setattr(World, name, counted(getattr(World, name), name, asked))
    from tasft.result import rows

    real, left = rows.append_objects, 0

    def failing(path, objects):
        nonlocal left
        left -= 1
        objects = list(objects)
        if left == 0 and objects:
            real(path, objects[:1])
            with path.open("ab") as file:
                file.write(b'{"text": "cut sh')
            raise Killed
        real(path, objects)

    monkeypatch.setattr(rows, "append_objects", failing)
    monkeypatch.setattr("tasft.contrastive.JUDGED_AT_ONCE", 5)
    for file in FOLDER.iterdir():
        file.unlink()
    kills = 0
    while not (FOLDER / "pairs.jsonl").exists():
        left = 3
        try:
            run()
        except Killed:
            kills += 1
    assert kills > 3
    assert {file.name: file.read_bytes() for file in FOLDER.glob("*.jsonl")} == whole
    # a batch that was cut off is asked again, and none that was written
    assert max(asked.values()) == 2
    before = asked.copy()
    run()
    assert asked == before


def test_what_the_judge_says_decides(monkeypatch):
    monkeypatch.setattr(World, "answer", lambda self, prompts: [reply(i) for i, _ in enumerate(prompts)])

    def reply(i):
        return [Generated("I cannot help with that."), Generated("Sure."), Generated(""), Generated(None, "gone")][
            i % 4
        ]

    pairs = run("contrastive.judges=[refusal]")
    asked = report()["prompts"]["kept"]
    assert {pair["response"] for pair in pairs} == {"Sure."}
    assert report()["answers"]["dropped"] == {"refusal": (asked + 3) // 4}
    assert set(report()["answers"]["without"]) == {"empty", "failed"}
    with pytest.raises(UserError, match=r"no answer of .* is left"):
        run("contrastive.judges=[refusal]", "contrastive.drop=[refusal,answer]")


@pytest.mark.parametrize(("batch_size", "again"), [(2, []), (None, [["too long"]])])
def test_only_a_server_is_asked_again_what_it_did_not_say(tmp_path, batch_size, again):
    asked = []

    def ask(batch):
        asked.append(batch)
        return [Generated("yes") if len(text) < 5 else Generated(None, "no room") for text in batch]

    for _ in range(2):
        said = _asked(tmp_path / "said.jsonl", ["a", "too long", "b"], batch_size, ask, "asking")
        assert said == {"a": Generated("yes"), "too long": Generated(None, "no room"), "b": Generated("yes")}
    first = [["a", "too long", "b"]] if batch_size is None else [["a", "too long"], ["b"]]
    assert asked == first + again


def test_a_prompt_of_a_benchmark_is_left_out():
    first = run()[0]["prompt"]
    Path("ask.json").write_text(json.dumps([first.upper() + "!"]))
    pairs = run("benchmark=[local]", "benchmark.local.kind=seeming", "benchmark.local.source.path=ask.json")
    assert first not in {pair["prompt"] for pair in pairs}
    assert report()["prompts"]["dropped"] == {"benchmark prompt": 1}


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    (
        (
            ["~generator@contrastive.prompts"],
            r"choose one with generator@contrastive.prompts=.* \(there are hf, openai",
        ),
        (["generator@contrastive.answers=openai"], "contrastive.answers.model has no value"),
        (["generator@contrastive.answers=openai", "contrastive.answers.model=x"], "set OPENAI_API_KEY"),
        (
            ["generator@contrastive.prompts=hf", "contrastive.prompts.path=./no"],
            "contrastive.prompts.path=./no: no such",
        ),
        (
            ["contrastive.judges=[other]"],
            r"contrastive.judges=\[other\] has to name judges of judge=\[oracle,refusal\]",
        ),
        (["contrastive.z=99"], "smaller contrastive.z"),
        (["+contrastive.prompts.color=red"], "contrastive.prompts .*World.* does not work: .*color"),
        (["data.toxic_prompts.rows=null"], "data.toxic_prompts says no place to read from"),
        (["data.toxic_prompts.rows=null", "data.toxic_prompts.path=blank.json"], "holds no prompt"),
    ),
)
def test_mistakes_are_found_before_anything_is_asked(overrides, sentence):
    Path("blank.json").write_text('[" "]')
    with pytest.raises(UserError, match=sentence) as caught:
        run(*overrides)
    assert "\n" not in str(caught.value)
    assert not FOLDER.exists()


class Chat(BaseHTTPRequestHandler):
    """A chat server: first it is busy, then it sends garbage, then it writes lists and answers."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = request["messages"][-1]["content"]
        count = self.server.asked[text] = self.server.asked[text] + 1
        word = re.search(r'the word "(\w+)"', text)
        if "wallet" in text and word:
            status, content = 200, "I am sorry, but I will not."
        elif word and word[1] == "steal" and count == 1:
            status, content = 429, None
        elif word and count == 1 and word[1] == "trick":
            status, content = 200, None
        elif word:
            status, content = 200, f'["May I {word[1]} a sunset?", "Can the wind {word[1]}?", "May I sing?"]'
        else:
            status, content = 200, "Yes. It does no harm."
        choices = [] if content is None else [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
        ]  # fmt: skip
        reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": choices}
        body = json.dumps(reply).encode()
        self.send_response(status)
        for key, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Retry-After": "0",
        }.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def chat():
    served = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
    served.asked = Counter()
    threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


def remote(role, chat):
    return [
        f"generator@contrastive.{role}=openai", f"contrastive.{role}.model=m",
        f"contrastive.{role}.base_url=http://127.0.0.1:{chat.server_port}/v1", f"+contrastive.{role}.wait=0.01",
    ]  # fmt: skip


def test_a_server_that_is_busy_and_sends_garbage(chat):
    both = [*remote("prompts", chat), *remote("answers", chat), "contrastive.judges=[refusal]"]
    pairs = run(*both)
    said = report()
    words = [json.loads(line)["word"] for line in (FOLDER / "words.jsonl").read_text().splitlines()]
    wrote = [word for word in words if word != "wallet"]
    assert "wallet" in words
    assert said["prompts"]["without"] == {"unreadable": 1}
    assert said["prompts"]["dropped"] == {"without the word": len(wrote)}
    assert [pair["prompt"] for pair in pairs[:2]] == [f"May I {wrote[0]} a sunset?", f"Can the wind {wrote[0]}?"]
    assert len(pairs) == 2 * len(wrote)
    asked, bytes_ = chat.asked.copy(), (FOLDER / "pairs.jsonl").read_bytes()
    assert sum(asked.values()) == len(words) + len(pairs) + 2
    for file in FOLDER.glob("*.jsonl"):
        file.unlink()
    run(*both)
    assert chat.asked == asked  # what is kept of a server outlives the folder
    assert (FOLDER / "pairs.jsonl").read_bytes() == bytes_


@pytest.fixture
def model(here):
    """A saved model of random weights: what it says is garbage."""
    tokenizer = train_tokenizer(["How do I steal a wallet?", "Write a JSON list of strings."], 280)
    tokenizer.save_pretrained(here / "model")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.4, max_position_embeddings=2048, **shape)
    LlamaForCausalLM(config).save_pretrained(here / "model")


def local(role, **keys):
    keys = {"path": "./model", "dtype": "float32", "format": "short", "max_new_tokens": 6, "batch_size": 4} | keys
    return [f"generator@contrastive.{role}=hf", *(f"contrastive.{role}.{key}={value}" for key, value in keys.items())]


def test_a_saved_model_answers_and_what_it_garbles_is_dropped(model):
    pairs = run(*local("answers"), "contrastive.judges=[refusal]", "contrastive.per_word=2")
    assert {pair["answerer"] for pair in pairs} == {"./model"}
    assert len(pairs) == report()["prompts"]["kept"]
    assert len({pair["response"] for pair in pairs}) > 1
    with pytest.raises(UserError, match=r"no answer of \d+ is left \(\d+ gibberish\)"):
        run(*local("answers"), "contrastive.per_word=2")
    with pytest.raises(UserError, match=r"no seemingly toxic prompt is left of 0 \(\d+ unreadable\)"):
        run(*local("prompts"))


def test_a_saved_model_killed_in_a_batch_says_the_same_afterwards(model, monkeypatch):
    settings = [*local("answers"), "contrastive.judges=[refusal]", "contrastive.per_word=2"]
    run(*settings)
    whole = {file.name: file.read_bytes() for file in FOLDER.glob("*.jsonl")}
    (answers,) = FOLDER.glob("answers-*.jsonl")
    lines = answers.read_bytes().splitlines(keepends=True)
    assert len(lines) > 8
    answers.write_bytes(b"".join(lines[:6]) + lines[6][:10])
    run(*settings)
    assert {file.name: file.read_bytes() for file in FOLDER.glob("*.jsonl")} == whole


def test_a_prompt_that_leaves_no_room_has_no_answer(model):
    from tasft.generator.local import Local

    said = Local("./model", dtype="float32", format="short", max_new_tokens=2000, device="cpu").answer(["Why? " * 200])
    assert said[0].text is None
    assert "2048 positions" in str(said[0].reason)


def test_another_process_keeps_out(here):
    from filelock import FileLock

    FOLDER.mkdir(parents=True)
    with FileLock(FOLDER / ".lock"), pytest.raises(UserError, match="another process"):
        run()


def test_the_command_line():
    said = subprocess.run(
        [sys.executable, "-m", "tasft.contrastive", "experiment=demo", "contrastive.judges=[x]"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 1
    assert said.stderr.startswith("tasft: contrastive.judges=[x] has to name")
    assert said.stderr.count("\n") == 1
