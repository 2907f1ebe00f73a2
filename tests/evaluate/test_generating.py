"""Batched answers are those of prompts asked one by one."""

import copy
from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from tasft.data.example import Example
from tasft.data.tokenize import Encoder, answer_ids, prompt_ids
from tasft.evaluate import generating
from tasft.evaluate.generating import Answer, Sampling, _Drawing, begin, generate
from tasft.model.scratch import train_tokenizer
from tasft.prompt import prompt_format
from tasft.result.batches import Batches

PROMPTS = ["Name a fruit.", "Why?", "Sort these words for me, please: " + "pear, apple, " * 5, "Größe", "Who?", "Why?"]
NEW = 12


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(PROMPTS, 270)


@pytest.fixture
def model(tokenizer):
    """Random and wide awake: answers depend on the prompt and are not one token again and again."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.4, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def answers(model, tokenizer, prompts=PROMPTS, batch_size=4):
    given = generate(model, tokenizer, prompts, prompt_format("short", tokenizer), NEW, batch_size)
    return [answer.text for answer in given]


def by_hand(model, tokenizer, prompt, stops):
    """Greedy decoding of one prompt, without padding, cache or generate()."""
    format = prompt_format("short", tokenizer)
    return continued(model, prompt_ids(tokenizer, format.prompt(prompt), format), stops)


@torch.no_grad()
def continued(model, ids, stops):
    """What follows `ids`, greedily."""
    new = []
    for _ in range(NEW):
        token = int(model(torch.tensor([ids + new])).logits[0, -1].argmax())
        if token in stops:
            break
        new.append(token)
    return new


def text(tokenizer, tokens):
    return tokenizer.decode(tokens, skip_special_tokens=True).strip()


@pytest.mark.parametrize("batch_size", [1, 2, 4, 64])
def test_batches_change_no_answer_and_no_order(model, tokenizer, batch_size):
    want = [text(tokenizer, by_hand(model, tokenizer, prompt, {tokenizer.eos_token_id})) for prompt in PROMPTS]
    assert len(set(want)) == 5  # one prompt stands there twice
    assert answers(model, tokenizer, batch_size=batch_size) == want


def test_an_answer_ends_at_the_first_stop(model, tokenizer):
    # The third token that the first prompt gets is declared a second stop, and padding, too.
    third = by_hand(model, tokenizer, PROMPTS[0], {tokenizer.eos_token_id})[2]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, third]
    stops = {tokenizer.eos_token_id, third}
    want = [by_hand(model, tokenizer, prompt, stops) for prompt in PROMPTS]
    assert len(want[0]) <= 2 and max(map(len, want)) == NEW
    assert answers(model, tokenizer) == [text(tokenizer, tokens) for tokens in want]


@pytest.mark.parametrize("kept", [True, False])
def test_rows_that_have_ended_are_not_decoded_on(model, tokenizer, monkeypatch, kept):
    # every fourth token is a stop: answers of 0 to NEW tokens
    stops = {tokenizer.eos_token_id, *range(3, len(tokenizer), 8)}
    model.generation_config.eos_token_id = sorted(stops)
    want = [by_hand(model, tokenizer, prompt, stops) for prompt in PROMPTS]
    assert len({len(tokens) for tokens in want}) > 3
    sizes = []
    forward = model.forward

    def counting(input_ids, **more):
        sizes.append(tuple(input_ids.shape))
        return forward(input_ids, **more)

    monkeypatch.setattr(model, "forward", counting)
    if not kept:  # a model that keeps what it has read in another way
        monkeypatch.setattr(generating, "_only", lambda cache, rows: None)
    assert answers(model, tokenizer, batch_size=6) == [text(tokenizer, tokens) for tokens in want]
    rows = [rows for rows, _ in sizes]
    assert rows == sorted(rows, reverse=True) and rows[0] == 6 and rows[-1] < 3
    assert sum(rows) < 6 * max(map(len, want))
    assert sum(tokens > 1 for _, tokens in sizes) == (1 if kept else len(set(rows)))  # prompts are read once


def test_padding_may_be_eos_or_missing(model, tokenizer):
    third = by_hand(model, tokenizer, PROMPTS[0], {tokenizer.eos_token_id})[2]
    word = tokenizer.convert_ids_to_tokens(third)
    other = copy.deepcopy(tokenizer)
    other.eos_token = word
    model.generation_config.eos_token_id = None
    want = [text(tokenizer, by_hand(model, tokenizer, prompt, {third})) for prompt in PROMPTS]
    for pad in (word, None):
        other.pad_token = pad
        assert answers(model, other) == want


def test_decoding_is_greedy_whatever_the_model_brings(model, tokenizer):
    want = answers(model, tokenizer)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=5.0, top_p=0.9, repetition_penalty=5.0, no_repeat_ngram_size=1,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    assert answers(model, tokenizer) == want


def test_beams_are_those_of_prompts_asked_one_by_one(model, tokenizer):
    format = prompt_format("short", tokenizer)
    want = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt_ids(tokenizer, format.prompt(prompt), format)])
        out = model.generate(ids, max_new_tokens=NEW, num_beams=4, do_sample=False)[0, ids.shape[1] :].tolist()
        want.append(text(tokenizer, out))
    given = generate(model, tokenizer, PROMPTS, format, NEW, 4, options={"num_beams": 4})
    assert [answer.text for answer in given] == want != answers(model, tokenizer)


BEGINNINGS = ["Apples are", "", "  ", "I, pear, am a\n", "pear, apple, pear", "Größ"]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_answer_goes_on_from_the_beginning_that_it_is_given(model, tokenizer, batch_size):
    format, eos = prompt_format("short", tokenizer), {tokenizer.eos_token_id}
    prompts = PROMPTS[:6]
    given = generate(model, tokenizer, prompts, format, NEW, batch_size, prefix=BEGINNINGS)
    for prompt, beginning, answer in zip(prompts, BEGINNINGS, given, strict=True):
        row = Encoder(tokenizer, format, 512)(Example(prompt, beginning.strip() or "x", True, "here"))
        ids = list(row.input_ids)
        start = row.prompt_length
        if not beginning.strip():
            ids = ids[:start]
        new = continued(model, ids, eos)
        assert answer.text == text(tokenizer, ids[start:] + new)
        assert answer.text.startswith(beginning.strip())
        assert answer.truncated == (len(new) == NEW)
    plain = answers(model, tokenizer, prompts)
    assert [answer.text == want for answer, want in zip(given, plain, strict=True)] == [
        not b.strip() for b in BEGINNINGS
    ]


def test_a_beginning_may_be_the_first_tokens_of_an_answer(model, tokenizer):
    format, eos = prompt_format("short", tokenizer), {tokenizer.eos_token_id}
    prompt, whole = PROMPTS[0], "Pear, apple, pear and Größe."
    row = Encoder(tokenizer, format, 512)(Example(prompt, whole, True, "here"))
    asked, tokens = answer_ids(tokenizer, prompt, whole, format)
    assert (tuple(asked + tokens), len(asked)) == (row.input_ids, row.prompt_length)
    counts = range(len(tokens) + 1)
    given = generate(model, tokenizer, [prompt] * len(counts), format, NEW, 5, prefix=[tokens[:n] for n in counts])
    for n, answer in zip(counts, given, strict=True):
        want = text(tokenizer, tokens[:n] + continued(model, asked + tokens[:n], eos))
        assert answer.text == want
    assert given[0].text == answers(model, tokenizer, [prompt])[0]
    assert given[-1].text.startswith(whole)
    with pytest.raises(ValueError):
        generate(model, tokenizer, PROMPTS, format, NEW, 4, prefix=["one for all"])


def test_a_chat_template_puts_the_beginning_where_the_answer_is(tokenizer):
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}{% if m['role'] == 'assistant' %}</s>{% endif %}"
        "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
    )
    format = prompt_format("chat", chatty)
    [begun] = begin(chatty, ["Why?"], format, ["Because pear"])
    assert chatty.decode(begun.prompt) == "<user> Why?\n<assistant> "
    assert chatty.decode(begun.answer) == "Because pear"


class Stop(Exception):
    """Stands for a kill."""


def test_stopped_anywhere_no_finished_batch_is_made_again(model, tokenizer, tmp_path, monkeypatch):
    made = []
    real = generating._batch

    def counting(model, tokenizer, batch, *more):
        if len(made) in stops:
            stops.remove(len(made))
            raise Stop
        made.append(batch)
        return real(model, tokenizer, batch, *more)

    def ask(*always, new=NEW, **more):
        kept = Batches(tmp_path / "unfinished.jsonl", Answer, *always)
        return generate(model, tokenizer, PROMPTS, prompt_format("short", tokenizer), new, 2, kept=kept, **more)

    stops = {0, 1, 2}
    monkeypatch.setattr(generating, "_batch", counting)
    for _ in range(3):
        with pytest.raises(Stop):
            ask()
    whole = (tmp_path / "unfinished.jsonl").read_bytes()
    assert whole.count(b"\n") == 2
    (tmp_path / "unfinished.jsonl").write_bytes(whole[:-9])  # a line that was being written
    got = ask()
    assert [len(each) for each in made] == [2] * 4  # three batches, and the one whose line was cut short again
    monkeypatch.undo()
    want = generate(model, tokenizer, PROMPTS, prompt_format("short", tokenizer), NEW, 2)
    assert got == want
    monkeypatch.setattr(generating, "_batch", counting)
    made.clear()
    assert ask() == want and not made
    for again in ({"new": NEW - 1}, {"options": {"num_beams": 2}}, {"prefix": ["I"] * len(PROMPTS)}):
        made.clear()
        ask(**again)
        assert len(made) == 3
    made.clear()
    ask({"dtype": "bfloat16"})
    assert len(made) == 3


def test_each_module_keeps_its_mode_even_if_it_fails(model, tokenizer, monkeypatch):
    model.train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    answers(model, tokenizer)
    assert [module.training for module in model.modules()] == modes and len(set(modes)) == 2

    def fails(**_):
        assert not model.training
        raise Stop

    monkeypatch.setattr(model, "generate", fails)
    with pytest.raises(Stop):
        answers(model, tokenizer)
    assert [module.training for module in model.modules()] == modes


def test_the_model_is_left_as_it_was(model, tokenizer):
    want = answers(model, tokenizer)
    model.train()
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    assert answers(model, tokenizer) == want
    assert model.training
    assert answers(model.eval(), tokenizer, []) == []
    assert not model.training


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_word_is_drawn_by_its_probability_among_the_likeliest(temperature):
    # of 0.05, 0.5, 0.15 and 0.3 the likeliest three have more than 0.9: they share it as 0.526, 0.316, 0.158
    numbers = {0.0: 1, 0.52: 1, 0.53: 3, 0.84: 3, 0.85: 2, 1 - 2**-53: 2}
    drawing = _Drawing(Sampling(temperature, 0.9, []), [SimpleNamespace(random=lambda n=n: n) for n in numbers])
    scores = temperature * torch.tensor([0.05, 0.5, 0.15, 0.3]).log().repeat(len(numbers), 1)
    left = drawing(torch.zeros(len(numbers), 1), scores)
    assert left.argmax(-1).tolist() == list(numbers.values())
    assert (left > -torch.inf).sum(-1).tolist() == [1] * len(numbers)
