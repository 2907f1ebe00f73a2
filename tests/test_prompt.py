"""Prompts and responses as text: STL's template word for word, and chat templates as models bring them."""

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tasft.errors import UserError
from tasft.prompt import prompt_format

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


def chat(template, system=None):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()), bos_token="<s>", eos_token="</s>", chat_template=template
    )
    return prompt_format("chat", tokenizer, system)


def test_stl_without_input():
    assert prompt_format("stl", None).prompt("Name a fruit.") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n"
        "\n### Instruction:\nName a fruit.\n\n### Response:\n"
    )


def test_stl_with_input():
    assert prompt_format("stl", None).prompt("Sort these.", "b, a") == (
        "Below is an instruction that describes a task, paired with an input that provides further context."
        " Write a response that appropriately completes the request.\n"
        "\n### Instruction:\nSort these.\n\n### Input:\nb, a\n\n### Response:\n"
    )


def test_short_is_stl_without_its_first_paragraph():
    short, stl = prompt_format("short", None), prompt_format("stl", None)
    for prompt in (("Sort these.", "b, a"), ("Name a fruit.",)):
        assert stl.prompt(*prompt).endswith("\n\n" + short.prompt(*prompt))
        assert short.prompt(*prompt).startswith("### Instruction:\n")


@pytest.mark.parametrize("name", ["stl", "short"])
def test_braces_are_text(name):
    text, end = prompt_format(name, None).answered("{input} {prompt} {0}", "{response}", "{prompt} {input}")
    assert text.endswith(
        "### Instruction:\n{input} {prompt} {0}\n\n### Input:\n{prompt} {input}\n\n### Response:\n{response}"
    )
    assert end == len(text)


def test_stl_has_no_place_for_earlier_turns():
    for call in (lambda f, h: f.prompt("Why?", "", h), lambda f, h: f.answered("Why?", "So.", "", h)):
        with pytest.raises(UserError, match=r"earlier turns: use data\.format=chat"):
            call(prompt_format("stl", None), (("Hello", "Good day"),))


def test_chatml_by_hand():
    format = chat(CHATML, system="Be brief.")
    before = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nGood day<|im_end|>\n<|im_start|>user\nSort.\n\nb, a<|im_end|>\n<|im_start|>assistant\n"
    )
    history = (("Hello", "Good day"),)
    assert format.prompt("Sort.", "b, a", history) == before
    text, end = format.answered("Sort.", "a, b", "b, a", history)
    assert text == before + "a, b<|im_end|>"
    assert text[:end] == before + "a, b"


def test_llama3_by_hand():
    format = chat(LLAMA3)
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    before = "<s>" + head.format("user") + "Hello<|eot_id|>" + head.format("assistant")
    assert format.prompt("Hello") == before
    assert not format.special_tokens  # BOS is in the text
    text, end = format.answered("Hello", " Good day\n")  # the template trims it
    assert text == before + "Good day<|eot_id|>"
    assert text[:end] == before + "Good day"


def test_a_space_before_the_response_belongs_to_it():
    text, end = chat(MISTRAL).answered("Hello", "Good day")
    assert (text, end) == ("<s>[INST] Hello [/INST] Good day</s>", len("<s>[INST] Hello [/INST] Good day"))


def test_a_response_that_ends_in_new_lines_keeps_its_end_of_turn():
    text, end = chat(CHATML).answered("Hello", "Good day\n\n")
    assert text.endswith("<|im_start|>assistant\nGood day\n\n<|im_end|>")
    assert text[:end].endswith("\nGood day")


@pytest.mark.parametrize(
    "template",
    [CHATML.replace("m.content", "m.content | upper"), CHATML.replace("messages", "messages[-1:]")],
    ids=["changes the response", "forgets the prompt"],
)
def test_a_template_that_changes_the_text_is_refused(template):
    with pytest.raises(UserError, match=r"the chat template changes .* use data\.format=stl"):
        chat(template).answered("Hello", "Good day")


def test_a_tokenizer_without_a_template_is_refused():
    with pytest.raises(UserError, match=r"no chat template: use data\.format=stl"):
        chat(None)
