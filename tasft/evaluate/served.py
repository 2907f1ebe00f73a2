"""Answers of a run's adapter from a server that speaks OpenAI's completions, as vLLM does: for large models.

In an environment of its own, for runs that are trained (python -m tasft.run ... benchmark=[]), one or all of a grid:

    vllm serve <model.path> --enable-lora --max-lora-rank <model.lora.r> --generation-config vllm \\
        --lora-modules a=<run folder>/adapter b=<another run's folder>/adapter

Then the command of the run, or of the grid, with its benchmarks and evaluate.server.base_url=http://localhost:8000/v1:
each run finds its own adapter among the server's models, by its path. Where the server sees the folder at another path,
the name holds the adapter's digest, which the refusal says. One that is loaded later (/v1/load_lora_adapter, under
VLLM_ALLOW_RUNTIME_LORA_UPDATING=True) is found as well. vLLM reads an adapter once: after resume=false give it the new
one under another name, which evaluate.server.model then says, or start it again. https://docs.vllm.ai/en/stable/features/lora.html
"""

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasft.errors import UserError
from tasft.evaluate.generating import Answer, Begun, begin
from tasft.prompt import Format
from tasft.remote import Failure, Reply, Server
from tasft.schema import Served

if TYPE_CHECKING:
    import openai

CHECKED = 8  # prompts whose answers with and without the adapter are compared
OURS = "decided_by"  # of a request: what the server does not see
DIGITS = 12  # of an adapter's digest in a name


def served(
    settings: Served,
    path: str,
    adapter: Path | None,
    tokenizer: Any,
    prompts: Sequence[str],
    format: Format,
    max_new_tokens: int,
    title: str,
    prefix: Sequence[str | Sequence[int]] | None = None,
) -> list[Answer]:
    """One greedy answer for each prompt, as `generate` gives them; each is asked for once, however often it is killed.

    The server gets tokens, which no template of its own changes. path: the base model's, its name where the settings
    give none. adapter: the folder of the one that the server should apply; None: the base model answers.

    UserError where the server has another adapter or says the same without it, where a prompt is longer than it reads,
    or where prompts stay without an answer.
    """
    options = {"concurrency": settings.concurrency, "timeout": settings.timeout}
    server = Server(settings.base_url, settings.key, node="evaluate.server", **options)  # type: ignore[arg-type]
    begun, models = begin(tokenizer, prompts, format, prefix), server.models()
    digest = hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest() if adapter else path
    base = settings.base_model or path
    name = base if adapter is None else _name(server, settings.model, models, adapter, digest)
    _check_lengths(server, models, {name, base}, begun, max_new_tokens)
    if adapter is not None:
        _check(server, name, base, begun, max_new_tokens)
    replies = _ask(server, name, begun, max_new_tokens, digest, title)
    texts = [
        tokenizer.decode(each.answer, skip_special_tokens=True) + reply["text"]
        for each, reply in zip(begun, replies, strict=True)
    ]
    return [Answer(text.strip(), reply["cut"]) for text, reply in zip(texts, replies, strict=True)]


def _name(
    server: Server, given: str | None, models: Mapping[str, Mapping[str, Any]], adapter: Path, digest: str
) -> str:
    """What the server calls the adapter: `given`, or what it says itself; UserError where that is another one, or none.

    Its models say where they were read from (`root`). Another path may lead to the same adapter, or be on another
    machine: then the digest in its name is the user's word for it, and counts more than a path, where another adapter
    may have been before. UserError as well where several have been read from that path.
    """
    asked = [name for name in models if given in (None, name)]
    named = [name for name in asked if digest[:DIGITS] in name]
    found = named or [name for name in asked if _is(models[name].get("root"), adapter)]
    if len(found) == 1 or named:
        return found[0]
    if found:  # what vLLM has read before resume=false is still there, under the same path
        raise UserError(
            f"{server.base_url} has read {adapter} more than once, as {', '.join(found)}: say which was the last with"
            " evaluate.server.model=<name>"
        )
    there = "has no model with that adapter"
    if given is not None:
        there = f"calls {models[given].get('root')} {given}" if given in models else f"knows no {given}"
    raise UserError(
        f"{adapter} is to answer, and {server.base_url} {there}: give vLLM --enable-lora --lora-modules"
        f" {given or 'tuned'}={adapter.absolute()}; or, where it sees that folder at another path,"
        f" tuned-{digest[:DIGITS]}=<path>" + (f", and leave evaluate.server.model={given} out" if given else "")
    )


def _is(root: object, adapter: Path) -> bool:
    """Whether a path on the server is the adapter's folder here."""
    return isinstance(root, str) and Path(root).expanduser().is_dir() and adapter.samefile(Path(root).expanduser())


def _check_lengths(
    server: Server,
    models: Mapping[str, Mapping[str, Any]],
    names: set[str],
    begun: Sequence[Begun],
    max_new_tokens: int,
) -> None:
    """UserError where a prompt and its answer may be longer than the server reads, if it says how much that is."""
    said = [models.get(name, {}).get("max_model_len") for name in names]
    limit = min((each for each in said if isinstance(each, int)), default=None)
    longest = max(range(len(begun)), key=lambda i: len(begun[i].ids), default=None)
    if limit is None or longest is None or len(begun[longest].ids) + max_new_tokens <= limit:
        return
    tokens = len(begun[longest].ids)
    raise UserError(
        f"prompt {longest + 1} of {len(begun)} has {tokens:,} tokens, with evaluate.max_new_tokens={max_new_tokens:,}"
        f" more than the {limit:,} that {server.base_url} reads: start vLLM with --max-model-len"
        f" {tokens + max_new_tokens} (beyond the model's own length with VLLM_ALLOW_LONG_MAX_MODEL_LEN=1), or leave the"
        " benchmark out"
    )


def _check(server: Server, name: str, base: str, begun: Sequence[Begun], max_new_tokens: int) -> None:
    """UserError where the adapter changes no answer: then the server does not apply it. Asks afresh each time."""
    now = uuid.uuid4().hex
    said = [_ask(server, each, begun[:CHECKED], max_new_tokens, now, f"asking {each}") for each in (name, base)]
    if said[0] == said[1] and said[0]:
        raise UserError(
            f"{server.base_url} gives {name} and {base} the same {len(said[0])} answers: it does not apply the adapter;"
            " start it with --enable-lora and --lora-modules"
        )


def _ask(
    server: Server, name: str, begun: Sequence[Begun], max_new_tokens: int, decided_by: str, title: str
) -> list[Reply]:
    """{"text": the rest of the answer, "cut": whether the limit ended it} for each; UserError where one is missing."""
    common = {"model": name, "max_tokens": max_new_tokens, "temperature": 0.0, OURS: decided_by}
    replies = server.ask("completions", [common | {"prompt": each.ids} for each in begun], _complete, title)
    failed = [i for i, reply in enumerate(replies) if isinstance(reply, Failure)]
    if failed:
        first, why = failed[0], replies[failed[0]]
        assert isinstance(why, Failure)
        raise UserError(
            f"{server.base_url} has no answer to {len(failed)} of {len(begun)} prompts, first to prompt {first + 1} of"
            f" {len(begun[first].ids):,} tokens ({why.reason}): give the same command again, to a server that reads"
            " longer prompts where it is too long; the other answers are kept"
        )
    return [reply for reply in replies if not isinstance(reply, Failure)]


def _complete(client: "openai.OpenAI", request: dict[str, Any]) -> Reply:
    """The part of one completion that is needed; ValueError where the server sent none."""
    reply = client.completions.create(**{key: value for key, value in request.items() if key != OURS})
    try:  # the client's types check nothing
        choice: Any = reply.choices[0]
    except (AttributeError, LookupError, TypeError):
        choice = None
    text, finish = getattr(choice, "text", None), getattr(choice, "finish_reason", None)
    if not isinstance(text, str):
        raise ValueError("it has no text")
    return {"text": text, "cut": finish == "length"}
