"""A causal language model on this machine, greedy."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers

from tasft.data.tokenize import prompt_ids
from tasft.errors import UserError
from tasft.evaluate.generating import generate
from tasft.generator.asking import request
from tasft.generator.protocol import Reply
from tasft.model.loading import load_base, load_tokenizer, model_fingerprint
from tasft.prompt import prompt_format


class Local:
    """The model at `path` (a Hugging Face id or a local folder), loaded when it is first asked.

    `format` is stl, short or chat: chat is the model's own template, without a system prompt.
    """

    def __init__(
        self,
        path: str,
        revision: str | None = None,
        dtype: str = "bfloat16",
        attention: str | None = None,
        format: str = "chat",
        max_new_tokens: int = 512,
        batch_size: int = 16,
        device: str | None = None,
        node: str = "model",
    ) -> None:
        self.path, self.revision, self.dtype, self.attention = path, revision, dtype, attention
        self.format, self.max_new_tokens, self.batch_size = format, max_new_tokens, batch_size
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.name, self.node = path, node
        self._model: Any = None

    @property
    def identity(self) -> str:
        """What decides the words: not where the model lies, nor how many are asked at once."""
        return f"{model_fingerprint(self.path)} {self.revision} {self.dtype} {self.format} {self.max_new_tokens}"

    def check(self) -> None:
        """UserError where the model has no tokenizer, or no chat template though that is the format."""
        try:
            self._tokenizer = load_tokenizer(self.path, self.revision)
            self._format = prompt_format(self.format, self._tokenizer)
        except UserError as error:  # which speaks of the run's own model
            said = str(error).replace("model.path", f"{self.node}.path").replace("data.format", f"{self.node}.format")
            raise UserError(said) from None

    def write(self, words: Sequence[str], count: int) -> list[Reply]:
        """For each word what the model says to `request`."""
        return self.answer([request(word, count) for word in words])

    def answer(self, prompts: Sequence[str]) -> list[Reply]:
        """The model's answer to each prompt; none where the prompt leaves it no room to answer."""
        if self._model is None:
            self.check()
            transformers.utils.logging.disable_progress_bar()
            self._model = load_base(self.path, self.dtype, self.revision, self.attention).to(self.device)
        room = getattr(self._model.config, "max_position_embeddings", None) or 2**31
        fits = [
            len(prompt_ids(self._tokenizer, self._format.prompt(p), self._format)) + self.max_new_tokens <= room
            for p in prompts
        ]
        asked = [prompt for prompt, fit in zip(prompts, fits, strict=True) if fit]
        said = iter(
            generate(self._model, self._tokenizer, asked, self._format, self.max_new_tokens, self.batch_size)
            if asked
            else []
        )
        return [Reply(next(said)) if fit else Reply(None, f"longer than the model's {room} positions") for fit in fits]
