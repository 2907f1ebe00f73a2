"""A causal language model on this machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from tasft.data.tokenize import prompt_ids
from tasft.errors import UserError
from tasft.evaluate.generating import Sampling, generate
from tasft.generator.asking import request
from tasft.generator.protocol import Generated
from tasft.model.loading import load_base, load_tokenizer, model_fingerprint
from tasft.prompt import Turn, conversation, prompt_format
from tasft.remote import Message


class Local:
    """The model at `path` (a Hugging Face id or a local folder), loaded when it is first asked.

    `format` is stl, short or chat: chat is the model's own template, without a system prompt. Greedy, unless
    `temperature` is more than 0: then by numbers of each prompt's own, so that what is asked beside it changes nothing.
    """

    def __init__(
        self,
        path: str,
        revision: str | None = None,
        dtype: str = "bfloat16",
        attention: str | None = None,
        format: str = "chat",
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        batch_size: int = 16,
        device: str | None = None,
        node: str = "model",
    ) -> None:
        self.path, self.revision, self.dtype, self.attention = path, revision, dtype, attention
        self.format, self.max_new_tokens, self.batch_size = format, max_new_tokens, batch_size
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.temperature, self.top_p = temperature, top_p
        self.name, self.node = path, node
        self._model: Any = None

    @property
    def identity(self) -> str:
        """What decides the words: not where the model lies, nor how many are asked at once."""
        sampled = f" {self.temperature} {self.top_p}" if self.temperature else ""
        weights = f"{model_fingerprint(self.path)} {self.revision} {self.dtype}"
        return f"{weights} {self.format} {self.max_new_tokens}{sampled}"

    def check(self) -> None:
        """UserError where the model has no tokenizer, or no chat template though that is the format."""
        try:
            self._tokenizer = load_tokenizer(self.path, self.revision)
            self._format = prompt_format(self.format, self._tokenizer)
        except UserError as error:  # which speaks of the run's own model
            said = str(error).replace("model.path", f"{self.node}.path").replace("data.format", f"{self.node}.format")
            raise UserError(said) from None

    def write(self, words: Sequence[str], count: int) -> list[Generated]:
        """For each word what the model says to `request`."""
        return self.answer([request(word, count) for word in words])

    def answer(self, prompts: Sequence[str]) -> list[Generated]:
        """The model's answer to each prompt; none where the prompt leaves it no room to answer."""
        self._load()
        texts = [self._format.prompt(prompt) for prompt in prompts]
        return self._say(texts, texts)

    def reply(
        self, conversations: Sequence[Sequence[Message]], draws: Sequence[int], opening: str = "", end: str = ""
    ) -> list[Generated]:
        """What the model says next in each conversation; another draw is another reply if `temperature` is not 0.

        A template without a place for a system prompt gets it before the first turn. UserError without a template.
        """
        if self.format != "chat":
            raise UserError(f"{self.node}.format={self.format} has no conversations: use {self.node}.format=chat")
        self._load()
        texts = [conversation(self._tokenizer, each) for each in conversations]
        return self._say(texts, [f"{draw} {text}" for draw, text in zip(draws, texts, strict=True)], opening, end)

    def _load(self) -> None:
        if self._model is None:
            self.check()
            transformers.utils.logging.disable_progress_bar()
            self._model = load_base(self.path, self.dtype, self.revision, self.attention).to(self.device)

    def _say(self, texts: list[str], seeds: list[str], opening: str = "", end: str = "") -> list[Generated]:
        """What follows each text; a seed for each, for the sampling."""
        format = _AsItIs(self._format.special_tokens)
        room = getattr(self._model.config, "max_position_embeddings", None) or 2**31
        lengths = [len(prompt_ids(self._tokenizer, text + opening, format)) for text in texts]
        fits = [length + self.max_new_tokens <= room for length in lengths]
        asked, seeds = ([each for each, fit in zip(all, fits, strict=True) if fit] for all in (texts, seeds))
        said = iter(
            generate(
                *(self._model, self._tokenizer, asked, format, self.max_new_tokens, self.batch_size),
                prefix=[opening] * len(asked),
                sampling=Sampling(self.temperature, self.top_p, seeds) if self.temperature else None,
                end=end,
            )
        )
        return [
            Generated(next(said).text) if fit else Generated(None, f"longer than the model's {room} positions")
            for fit in fits
        ]


@dataclass(frozen=True)
class _AsItIs:
    """The format of a prompt that is laid out already."""

    special_tokens: bool

    def prompt(self, prompt: str, input: str = "", history: tuple[Turn, ...] = ()) -> str:
        return prompt

    def answered(self, prompt: str, response: str, input: str = "", history: tuple[Turn, ...] = ()) -> tuple[str, int]:
        return prompt + response, len(prompt + response)
