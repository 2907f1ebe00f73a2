"""A model on this machine that goes on with conversations."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tasft.errors import UserError
from tasft.evaluate.generating import generate
from tasft.generator.local import Local
from tasft.generator.protocol import Generated
from tasft.model.scratch import train_tokenizer
from tasft.prompt import prompt_format

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE
TALK = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}]
LONGER = [*TALK, {"role": "assistant", "content": "So."}, {"role": "user", "content": "Name a fruit."}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model, wide awake, with room for 200 tokens."""
    made = tmp_path_factory.mktemp("chat")
    tokenizer = train_tokenizer(["Name a fruit. Why? Be kind. So."], 270)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(made)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.4, max_position_embeddings=200,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(made)
    return str(made)


def local(folder, **settings):
    model = Local(folder, dtype="float32", max_new_tokens=8, device="cpu", **settings)
    model.check()
    return model


def follows(model, *texts):
    model.answer(["Why?"])  # loads it
    plain = prompt_format("short", model._tokenizer)
    bare = type(plain)("{prompt}", "{prompt}", special_tokens=False)
    return [Generated(said.text) for said in generate(model._model, model._tokenizer, list(texts), bare, 8, 4)]


def test_the_reply_follows_the_whole_conversation(folder):
    model = local(folder)
    said = model.reply([TALK, LONGER], draws=[0, 1])
    assert said == follows(
        model, "<system>Be kind.<user>Why?<a>", "<system>Be kind.<user>Why?<assistant>So.<user>Name a fruit.<a>"
    )
    assert said[0] != said[1]
    assert model.reply([TALK, TALK], draws=[0, 1]) == [said[0]] * 2  # greedy
    long = [{"role": "user", "content": "Why? " * 200}]
    assert model.reply([long], draws=[0]) == [Generated(None, "longer than the model's 200 positions")]


def test_a_template_without_a_system_prompt_gets_it_with_the_first_turn(folder):
    model = local(folder)
    model.reply([TALK], draws=[0])
    model._tokenizer.chat_template = NO_SYSTEM
    assert model.reply([LONGER], draws=[0]) == follows(
        model, "<user>Be kind.\n\nWhy?<assistant>So.<user>Name a fruit.<a>"
    )


def test_another_draw_is_another_reply_and_the_same_one_repeats(folder):
    model = local(folder, temperature=1.0, top_p=0.9)
    state = torch.get_rng_state()
    first = model.reply([TALK, TALK], draws=[0, 1])
    assert first[0] != first[1]
    assert model.reply([TALK, TALK], draws=[0, 1]) == first
    assert model.reply([TALK, TALK], draws=[2, 3]) != first
    assert torch.equal(torch.get_rng_state(), state)
    assert model.identity != local(folder).identity


def test_without_a_chat_template_there_is_no_conversation(folder):
    with pytest.raises(UserError, match=r"^model\.format=short has no conversations: use model\.format=chat$"):
        local(folder, format="short").reply([TALK], draws=[0])


def test_what_is_drawn_does_not_depend_on_what_is_asked_beside_it(folder):
    together = local(folder, temperature=1.0, top_p=0.9).reply([LONGER, TALK, TALK], draws=[0, 1, 2])
    model = local(folder, temperature=1.0, top_p=0.9, batch_size=2)
    assert model.reply([TALK], draws=[2]) == together[2:]
    assert model.reply([TALK, LONGER, TALK, LONGER], draws=[1, 0, 2, 3])[:3] == [together[1], together[0], together[2]]


def test_a_reply_begins_and_ends_as_it_is_made_to(folder):
    model = local(folder, temperature=3.0)
    said = model.reply([TALK] * 20, draws=range(20), opening='{"a": "', end="e")
    assert all(each.text.startswith('{"a": "') for each in said)
    said = [each.text.removeprefix('{"a": "') for each in said]
    assert {text.count("e") for text in said} == {0, 1}
    assert all(text.endswith("e") for text in said if "e" in text)
