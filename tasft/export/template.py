"""A run's prompt format as a chat template, and whether it gives the tokens that the run was trained on."""

import json
from collections.abc import Sequence
from typing import Any

from tasft.data.example import Example
from tasft.data.tokenize import Encoder, Tokenized, prompt_ids
from tasft.prompt import ChatFormat, Format, PlainFormat

# what a template may trip over: white space at the ends, braces, special tokens, characters of several bytes
ODD = (" How \n is it? \n\n", "{{ x }} {% raw %} {prompt} {input}", "</s><s>", "Größe ✓ 😀", "### Response:\n")


def templates(format: Format, tokenizer: Any) -> list[str]:
    """Chat templates that might render `format`, the likeliest first; for data.format=chat the tokenizer's own.

    What a tokenizer puts before any text stands in the template, as a rendered conversation gets nothing put before it.
    """
    if isinstance(format, ChatFormat):
        return [_with_system(format)] if isinstance(tokenizer.chat_template, str) else []
    assert isinstance(format, PlainFormat)
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    with_special = prompt_ids(tokenizer, "a", format)
    start = "".join(tokenizer.convert_ids_to_tokens(with_special[: len(with_special) - len(plain)]))
    # some tokenizers put a space before the very first word alone, and after BOS it is not the first any more
    return [_of_plain(format, each) for each in dict.fromkeys((start, f"{start} " if start else ""))]


def _of_plain(format: PlainFormat, start: str) -> str:
    """One prompt, perhaps with an `input` beside its `content`, and perhaps its answer."""
    head, _, tail = format.without_input.partition("{prompt}")
    blank, _, answer = tail.rpartition("\n\n")  # what the answer stands under belongs to the generation prompt
    with_head, _, rest = format.with_input.partition("{prompt}")
    middle, _, end = rest.partition("{input}")
    first = "messages[0]"
    return (
        f"{{% if {first}['role'] != 'user' or messages | length > 2"
        " or (messages | length == 2 and messages[1]['role'] != 'assistant') %}"
        "{{ raise_exception('this model knows one prompt and its answer: no system prompt, no earlier turns') }}"
        "{% endif %}"
        f"{{{{ {_text(start)} }}}}"
        f"{{% if {first}['input'] %}}"
        f"{{{{ {_text(with_head)} + {first}['content'] + {_text(middle)} + {first}['input']"
        f" + {_text(end.removesuffix(answer))} }}}}"
        "{% else %}"
        f"{{{{ {_text(head)} + {first}['content'] + {_text(blank + _BREAK)} }}}}"
        "{% endif %}"
        f"{{% if messages | length == 2 or add_generation_prompt %}}{{{{ {_text(answer)} }}}}{{% endif %}}"
        "{% if messages | length == 2 %}{{ messages[1]['content'] + eos_token }}{% endif %}"
    )


_BREAK = "\n\n"


def _with_system(format: ChatFormat) -> str:
    """The tokenizer's own template, with the run's system prompt where a conversation brings none."""
    own = str(format.tokenizer.chat_template)
    if not format.system:
        return own
    message = f"{{'role': 'system', 'content': {_text(format.system)}}}"
    return f"{{% if messages[0]['role'] != 'system' %}}{{% set messages = [{message}] + messages %}}{{% endif %}}{own}"


def _text(text: str) -> str:
    """A literal of Jinja's, whose escapes are JSON's but for characters beyond 16 bits."""
    return json.dumps(text, ensure_ascii=False)


def differing(tokenizer: Any, format: Format, own: Any, asked: Sequence[tuple[str, str]]) -> str | None:
    """The first prompt that `tokenizer`'s template does not give the run's tokens; None where there is none.

    own: the run's tokenizer. asked: prompts and answers; in a plain format an answered prompt is compared, too, with
    the row that the run would have been trained on.
    """
    encoder = Encoder(own, format, 10**9)
    prompts = [*asked, *((odd, "It is.") for odd in ODD)]
    inputs = [("Translate.", "Bon\njour")] if isinstance(format, PlainFormat) else []
    for prompt, answer in prompts:
        message = {"role": "user", "content": prompt}
        if _ids(tokenizer, [message], True) != prompt_ids(own, format.prompt(prompt), format):
            return prompt
        if isinstance(format, PlainFormat) and answer:
            row = encoder(Example(prompt, answer, False, ""))
            answered = _ids(tokenizer, [message, {"role": "assistant", "content": answer}], False)
            if not isinstance(row, Tokenized) or tuple(answered) != row.input_ids:
                return prompt
    for prompt, input in inputs:
        message = {"role": "user", "content": prompt, "input": input}
        if _ids(tokenizer, [message], True) != prompt_ids(own, format.prompt(prompt, input), format):
            return prompt
    return None


def _ids(tokenizer: Any, messages: list[dict[str, str]], add_generation_prompt: bool) -> list[int]:
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, return_dict=False)
    return list(ids)
