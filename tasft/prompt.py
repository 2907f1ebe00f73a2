"""How a prompt and a response become text: STL's Alpaca template, a short one, or the tokenizer's own chat template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from jinja2 import TemplateError

from tasft.errors import UserError

Turn = tuple[str, str]  # an earlier prompt of the user and the assistant's response

# https://github.com/vinid/safety-tuned-llamas, configs/alpaca.json (paper A.1)
STL_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n### Input:\n{input}\n\n### Response:\n"
)
STL_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n### Response:\n"
)
SHORT = "### Instruction:\n{prompt}\n\n### Response:\n"
SHORT_WITH_INPUT = "### Instruction:\n{prompt}\n\n### Input:\n{input}\n\n### Response:\n"


class Format(Protocol):
    """Turns a prompt into text, alone for generation and with its response for training."""

    @property
    def special_tokens(self) -> bool:
        """Whether the tokenizer adds BOS; False where the text has it already."""

    def prompt(self, prompt: str, input: str = "", history: tuple[Turn, ...] = ()) -> str:
        """The text that the response follows."""

    def answered(self, prompt: str, response: str, input: str = "", history: tuple[Turn, ...] = ()) -> tuple[str, int]:
        """The text with its response, and the character at which the response itself ends."""


@dataclass(frozen=True)
class PlainFormat:
    """One instruction, perhaps with an input, and its response."""

    with_input: str
    without_input: str
    special_tokens: bool = True

    def prompt(self, prompt: str, input: str = "", history: tuple[Turn, ...] = ()) -> str:
        """The text that the response follows; UserError where there are earlier turns."""
        if history:
            raise UserError("this format has no place for earlier turns: use data.format=chat")
        template = self.with_input if input else self.without_input
        head, _, rest = template.partition("{prompt}")  # not str.format: prompts hold braces
        return head + prompt + rest.replace("{input}", input, 1)

    def answered(self, prompt: str, response: str, input: str = "", history: tuple[Turn, ...] = ()) -> tuple[str, int]:
        """The text with its response, which ends it."""
        text = self.prompt(prompt, input, history) + response
        return text, len(text)


@dataclass(frozen=True)
class ChatFormat:
    """The chat template that an instruct model's tokenizer brings."""

    tokenizer: Any
    system: str | None = None
    special_tokens: bool = False

    def prompt(self, prompt: str, input: str = "", history: tuple[Turn, ...] = ()) -> str:
        """The conversation up to the point at which the assistant answers."""
        return self._render(self._messages(prompt, input, history), add_generation_prompt=True)

    def answered(self, prompt: str, response: str, input: str = "", history: tuple[Turn, ...] = ()) -> tuple[str, int]:
        """The conversation with the answer and the template's end of turn."""
        messages = self._messages(prompt, input, history)
        before = self._render(messages, add_generation_prompt=True)
        text = self._render([*messages, {"role": "assistant", "content": response}], add_generation_prompt=False)
        after = text.removeprefix(before).lstrip()  # some templates put a space before the response, or trim it
        if not text.startswith(before) or not after.startswith(response.strip()):
            raise UserError(
                "the chat template changes the response or the turns before it, so that the response cannot be found"
                " in the text: use data.format=stl"
            )
        return text.rstrip("\n"), len(text) - len(after) + len(response.strip())

    def _messages(self, prompt: str, input: str, history: tuple[Turn, ...]) -> list[dict[str, str]]:
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for asked, answered in history:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        return [*messages, {"role": "user", "content": f"{prompt}\n\n{input}" if input else prompt}]

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
        )


def conversation(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> str:
    """The conversation in the tokenizer's chat template, up to the point at which the assistant answers.

    A template without a place for a system prompt gets it before the first turn.
    """
    render = partial(tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)
    try:
        return str(render(list(messages)))
    except TemplateError:
        system, first, *rest = messages
        if system["role"] != "system":
            raise
        return str(render([{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]))


def prompt_format(name: str, tokenizer: Any, system: str | None = None) -> Format:
    """The format called `name`: stl, short or chat. UserError where the tokenizer has no chat template."""
    if name == "chat":
        if not getattr(tokenizer, "chat_template", None):
            raise UserError("data.format=chat, but this tokenizer has no chat template: use data.format=stl")
        return ChatFormat(tokenizer, system)
    return PlainFormat(STL_WITH_INPUT, STL_WITHOUT_INPUT) if name == "stl" else PlainFormat(SHORT_WITH_INPUT, SHORT)
