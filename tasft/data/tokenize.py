"""Example -> tokens, with the place where the response starts."""

from dataclasses import dataclass, replace
from typing import Any

from tasft.data.example import Example, Rejected
from tasft.errors import UserError
from tasft.prompt import Format


@dataclass(frozen=True)
class Tokenized:
    """The tokens of one example; those from `prompt_length` on are the response."""

    input_ids: tuple[int, ...]
    prompt_length: int
    toxic: bool
    truncated: bool = False
    rejected: "Tokenized | None" = None  # of a pair, which is one example: its rejected answer to the same prompt

    @property
    def response_length(self) -> int:
        """Number of tokens that a loss sees."""
        return len(self.input_ids) - max(self.prompt_length, 1)  # nothing predicts the very first token

    @property
    def halves(self) -> tuple["Tokenized", ...]:
        """What is in the model's batch: itself, and of a pair the rejected answer."""
        return (self,) if self.rejected is None else (self, self.rejected)


@dataclass(frozen=True)
class Encoder:
    """Turns examples into tokens: BOS as the tokenizer has it, once; EOS learned by safe rows.

    `toxic_eos`: whether the toxic response's EOS is pushed away from, too. A response longer than `max_length` allows
    is cut at its end and gets no EOS; a prompt that leaves it no token at all is rejected.
    """

    tokenizer: Any
    format: Format
    max_length: int
    toxic_eos: bool = False

    @property
    def identity(self) -> list[Any]:
        """What decides the tokens of an example."""
        backend, template = self.tokenizer.backend_tokenizer.to_str(), self.tokenizer.chat_template
        texts = [self.format.prompt("{prompt}"), self.format.prompt("{prompt}", "{input}")]
        return [backend, template, self.tokenizer.eos_token_id, texts, self.max_length, self.toxic_eos]

    def __call__(self, example: Example) -> Tokenized | Rejected:
        """The example's tokens, or why it has none; of a pair those of both answers."""
        if example.rejected is None:
            return self._one(example)
        chosen = self._one(replace(example, toxic=False))
        rejected = self._one(replace(example, response=example.rejected, toxic=True))
        if isinstance(chosen, Rejected):
            return chosen
        return rejected if isinstance(rejected, Rejected) else replace(chosen, toxic=True, rejected=rejected)

    def _one(self, example: Example) -> Tokenized | Rejected:
        try:
            before = self.format.prompt(example.prompt, example.input, example.history)
            text, end = self.format.answered(example.prompt, example.response, example.input, example.history)
        except UserError as error:
            return Rejected(example.source, str(error))
        wants_eos = self.toxic_eos or not example.toxic
        ids, spans = _tokens(self.tokenizer, text if wants_eos else text[:end], self.format)
        prompt_length = _prompt_length(spans, before)
        eos = self.tokenizer.eos_token_id
        if wants_eos and eos is not None and ids[-1] != eos:  # a chat template may bring it
            ids = [*ids, eos]
        truncated = len(ids) > self.max_length
        ids = ids[: self.max_length]
        if prompt_length >= len(ids):
            return Rejected(
                example.source, f"its prompt alone has {prompt_length} tokens; data.max_length={self.max_length}"
            )
        return Tokenized(tuple(ids), prompt_length, example.toxic, truncated)


def prompt_ids(tokenizer: Any, text: str, format: Format) -> list[int]:
    """Tokens of a rendered prompt as `Encoder` makes them: the first `prompt_length` ones of an example.

    Only where a token reaches over the end of the prompt into the response is that one not among them.
    """
    return _tokens(tokenizer, text, format)[0]


def answer_ids(tokenizer: Any, prompt: str, answer: str, format: Format) -> tuple[list[int], list[int]]:
    """Tokens of a prompt, and of an answer to it or the beginning of one, as `Encoder` makes them; without EOS.

    UserError where the format cannot hold the answer.
    """
    text, end = format.answered(prompt, answer)
    ids, spans = _tokens(tokenizer, text[:end], format)
    length = _prompt_length(spans, format.prompt(prompt))
    return ids[:length], ids[length:]


def _prompt_length(spans: list[tuple[int, int]], prompt: str) -> int:
    """How many tokens are the prompt's: one that reaches past it is the response's; BOS, which spans nothing, its."""
    return next((i for i, (_, stop) in enumerate(spans) if stop > len(prompt)), len(spans))


def _tokens(tokenizer: Any, text: str, format: Format) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids and the characters each one spans, without an EOS that the tokenizer adds by itself."""
    encoded = tokenizer(text, add_special_tokens=format.special_tokens, return_offsets_mapping=True, verbose=False)
    ids, spans = list(encoded["input_ids"]), [tuple(span) for span in encoded["offset_mapping"]]
    while len(ids) > 1 and spans[-1] == (0, 0):
        ids, spans = ids[:-1], spans[:-1]
    return ids, spans
