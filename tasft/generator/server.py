"""A model behind an OpenAI-compatible server: OpenAI, vLLM, llama.cpp, Ollama and others."""

from collections.abc import Sequence
from typing import Any

from tasft.generator.asking import request
from tasft.generator.protocol import Generated
from tasft.remote import Failure, Message, Server


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
        top_p: float | None = None,
        node: str = "",
        **server: Any,
    ) -> None:
        self.model, self.temperature, self.max_tokens, self.system = model, temperature, max_tokens, system
        self.top_p = top_p
        self._server = Server(base_url, key, node=node, **server)
        self.name = model
        self.identity = f"{base_url} {model} {temperature} {max_tokens} {system}" + (f" {top_p}" if top_p else "")

    def check(self) -> None:
        """Nothing more: the server has looked for its key when it was made."""

    def write(self, words: Sequence[str], count: int) -> list[Generated]:
        """For each word what the model says to `request`."""
        return self._ask([request(word, count) for word in words], "prompts for toxic words")

    def answer(self, prompts: Sequence[str]) -> list[Generated]:
        """The model's answer to each prompt."""
        return self._ask(prompts, "answers")

    def reply(
        self, conversations: Sequence[Sequence[Message]], draws: Sequence[int], opening: str = "", end: str = ""
    ) -> list[Generated]:
        """What the model says next in each conversation; where it begins and ends is up to the model."""
        return self._say(conversations, "replies", draws)

    def _ask(self, texts: Sequence[str], title: str) -> list[Generated]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return self._say([[*system, {"role": "user", "content": text}] for text in texts], title)

    def _say(
        self, conversations: Sequence[Sequence[Message]], title: str, draws: Sequence[int] | None = None
    ) -> list[Generated]:
        options: dict[str, Any] = {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens}
        replies = self._server.chat(self.model, conversations, title, draws=draws, **options)
        return [
            Generated(None, reply.reason) if isinstance(reply, Failure) else Generated(reply["content"])
            for reply in replies
        ]
