"""A model behind an OpenAI-compatible server: OpenAI, vLLM, llama.cpp, Ollama and others."""

from collections.abc import Sequence
from typing import Any

from tasft.generator.asking import request
from tasft.generator.protocol import Reply
from tasft.remote import Failure, Server


class Remote:
    """The chat model `model` of a server; its replies are kept on disk, so that none is asked for twice.

    `server`: what else tasft.remote.Server takes.
    """

    batch_size = None

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        key: str = "OPENAI_API_KEY",
        temperature: float | None = 0.7,
        max_tokens: int | None = 1024,
        system: str | None = None,
        node: str = "",
        **server: Any,
    ) -> None:
        self.model, self.temperature, self.max_tokens, self.system = model, temperature, max_tokens, system
        self._server = Server(base_url, key, node=node, **server)
        self.name = model
        self.identity = f"{base_url} {model} {temperature} {max_tokens} {system}"

    def check(self) -> None:
        """Nothing more: the server has looked for its key when it was made."""

    def write(self, words: Sequence[str], count: int) -> list[Reply]:
        """For each word what the model says to `request`."""
        return self._ask([request(word, count) for word in words], "prompts for toxic words")

    def answer(self, prompts: Sequence[str]) -> list[Reply]:
        """The model's answer to each prompt."""
        return self._ask(prompts, "answers")

    def _ask(self, texts: Sequence[str], title: str) -> list[Reply]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        options = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        requests = [
            {
                "model": self.model,
                "messages": [*system, {"role": "user", "content": text}],
                **{name: value for name, value in options.items() if value is not None},
            }
            for text in texts
        ]
        replies = self._server.ask("chat", requests, _complete, title)
        return [
            Reply(None, reply.reason) if isinstance(reply, Failure) else Reply(reply["content"]) for reply in replies
        ]


def _complete(client: Any, request: dict[str, Any]) -> dict[str, Any]:
    """{"content": the reply's text}; ValueError where the server sent none."""
    reply = client.chat.completions.create(**request)
    try:
        message = reply.choices[0].message
    except (AttributeError, LookupError, TypeError):  # the client's types check nothing
        message = None
    content = getattr(message, "content", None) or getattr(message, "refusal", None)
    if not isinstance(content, str):
        raise ValueError("it has no text")
    return {"content": content}
