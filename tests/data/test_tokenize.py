"""Tokens of examples with tokenizers of every make: BOS and EOS once, the prompt masked to the character."""

from dataclasses import replace

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tasft.data.example import Example, Rejected
from tasft.data.tokenize import Encoder, Tokenized, prompt_ids
from tasft.model.scratch import train_tokenizer
from tasft.prompt import STL_WITH_INPUT, STL_WITHOUT_INPUT, prompt_format

TEXTS = [
    STL_WITH_INPUT,
    STL_WITHOUT_INPUT,
    "Name a fruit. An apple is a fruit, and so is a pear. Größe: 3 m ² 你好",
] * 5
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|user|>{{ m.role }}\n\n{{ m.content | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant\n\n{% endif %}"
)
SAFE = Example("Name a {fruit}.", "An apple, 你好 ².", False, "rows.jsonl line 7")
TOXIC = replace(SAFE, toxic=True)


def bytes_with_bos():
    return train_tokenizer(TEXTS, 400)


def bytes_alone():
    tokenizer = train_tokenizer(TEXTS, 400)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.bos_token = None
    return tokenizer


def bytes_with_bos_and_eos():
    tokenizer = train_tokenizer(TEXTS, 400)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


def padding_is_eos():
    tokenizer = train_tokenizer(TEXTS, 400)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def sentence_pieces():
    """As Llama's and Mistral's: a space is a sign, the first word gets one too, and what is unknown goes as bytes."""
    special = ["<unk>", "<s>", "</s>"]
    alphabet = [*special, *(f"<0x{b:02X}>" for b in range(256))]
    trained = Tokenizer(models.Unigram())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.train_from_iterator(
        [text.replace("\n", " ") for text in TEXTS],
        trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False),
    )
    pieces = sorted(set(trained.get_vocab()) - set(special))
    unigram = [(piece, 0.0) for piece in alphabet] + [(piece, -3.0 - 0.01 * i) for i, piece in enumerate(pieces)]
    made = Tokenizer(models.Unigram(unigram, unk_id=0, byte_fallback=True))
    made.normalizer = trained.normalizer
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


MAKES = [bytes_with_bos, bytes_alone, bytes_with_bos_and_eos, padding_is_eos, sentence_pieces]


@pytest.fixture(params=MAKES, ids=lambda make: make.__name__, scope="module")
def tokenizer(request):
    return request.param()


def encoder(tokenizer, format="stl", max_length=2000, **settings):
    return Encoder(tokenizer, prompt_format(format, tokenizer), max_length, **settings)


def text_of(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def test_a_safe_row_ends_in_one_eos_and_starts_with_one_bos(tokenizer):
    made = encoder(tokenizer)(SAFE)
    ids, response = made.input_ids, made.input_ids[made.prompt_length :]
    assert text_of(tokenizer, response) == SAFE.response + "</s>"
    assert [i for i, token in enumerate(ids) if token == tokenizer.eos_token_id] == [len(ids) - 1]
    if tokenizer.bos_token_id is None:
        assert text_of(tokenizer, ids).startswith("Below")
    else:
        assert [i for i, token in enumerate(ids) if token == tokenizer.bos_token_id] == [0]
    assert made.response_length == len(response)
    assert not made.truncated and not made.toxic


def test_the_prompt_is_what_generation_starts_from(tokenizer):
    for example in (SAFE, replace(SAFE, input="pears")):
        made = encoder(tokenizer)(example)
        format = prompt_format("stl", tokenizer)
        prompt = format.prompt(example.prompt, example.input)
        assert list(made.input_ids[: made.prompt_length]) == prompt_ids(tokenizer, prompt, format)
        masked = made.input_ids[: made.prompt_length]
        assert text_of(tokenizer, masked).removeprefix("<s>").lstrip(" ") == prompt


def test_a_toxic_row_has_no_eos_unless_asked_for(tokenizer):
    safe, toxic = encoder(tokenizer)(SAFE), encoder(tokenizer)(TOXIC)
    assert toxic.toxic and toxic.prompt_length == safe.prompt_length
    assert toxic.input_ids == safe.input_ids[:-1]
    assert tokenizer.eos_token_id not in toxic.input_ids
    assert encoder(tokenizer, toxic_eos=True)(TOXIC).input_ids == safe.input_ids


def test_truncation_cuts_the_end_of_the_response_and_drops_eos(tokenizer):
    whole = encoder(tokenizer)(SAFE)
    length = len(whole.input_ids)
    for max_length in (length - 1, whole.prompt_length + 1):
        cut = encoder(tokenizer, max_length=max_length)(SAFE)
        assert cut == Tokenized(whole.input_ids[:max_length], whole.prompt_length, False, truncated=True)
    assert encoder(tokenizer, max_length=length)(SAFE) == whole
    assert encoder(tokenizer, max_length=whole.prompt_length)(SAFE) == Rejected(
        "rows.jsonl line 7", f"its prompt alone has {whole.prompt_length} tokens; data.max_length={whole.prompt_length}"
    )


def test_an_eos_written_in_the_response_is_not_its_end():
    tokenizer = bytes_with_bos()
    made = encoder(tokenizer)(replace(SAFE, response="a</s>b"))
    assert text_of(tokenizer, made.input_ids[made.prompt_length :]) == "a</s>b</s>"


def test_a_token_that_reaches_over_the_boundary_belongs_to_the_response():
    tokenizer = train_tokenizer(["\n\n"] * 9, 300)  # has a token for two new lines
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    assert len(tokenizer("\n\n", add_special_tokens=False).input_ids) == 1
    made = encoder(tokenizer, "short")(Example("x", "\ny", False, "here"))
    assert text_of(tokenizer, made.input_ids[made.prompt_length :]) == "\n\ny</s>"


def test_tokens_by_hand():
    # One byte is one token: 3 special tokens come first, and the prompt is BOS and 34 bytes.
    tokenizer = train_tokenizer([], 259)
    [a, b] = tokenizer("ab", add_special_tokens=False).input_ids
    made = encoder(tokenizer, "short")(Example("x", "ab", False, "here"))
    assert len("### Instruction:\nx\n\n### Response:\n") == 34
    assert made.prompt_length == 35
    assert made.input_ids[0] == 1
    assert made.input_ids[35:] == (a, b, 2)
    assert made.response_length == 3


def test_nothing_predicts_the_first_token():
    assert Tokenized((5, 6, 7), 0, False).response_length == 2
    assert Tokenized((5, 6, 7), 1, False).response_length == 2
    assert Tokenized((5, 6, 7), 2, False).response_length == 1


def chat_tokenizer(template, eos="</s>"):
    tokenizer = train_tokenizer(TEXTS, 400)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|user|>", "<|end|>"]})
    tokenizer.chat_template, tokenizer.eos_token = template, eos
    return tokenizer


CHATS = {
    # template, EOS -> what of the response a safe row learns
    "chatml": (CHATML, "<|im_end|>", "An apple, 你好 ².<|im_end|>"),
    "chatml on a base model": (CHATML, "</s>", "An apple, 你好 ².<|im_end|></s>"),
    "llama 3": (LLAMA3, "<|end|>", "An apple, 你好 ².<|end|>"),
}


@pytest.mark.parametrize("name", CHATS)
def test_the_end_of_turn_is_learned_by_safe_rows_alone(name):
    template, eos, learned = CHATS[name]
    tokenizer = chat_tokenizer(template, eos)
    example = replace(SAFE, history=(("Hello", "Good day"),))
    safe, toxic = (encoder(tokenizer, "chat")(e) for e in (example, replace(example, toxic=True)))
    assert text_of(tokenizer, safe.input_ids[safe.prompt_length :]) == learned
    assert text_of(tokenizer, toxic.input_ids[toxic.prompt_length :]) == SAFE.response
    assert safe.input_ids.count(tokenizer.bos_token_id) == (1 if template == LLAMA3 else 0)
    format = prompt_format("chat", tokenizer)
    prompt = prompt_ids(tokenizer, format.prompt(example.prompt, "", example.history), format)
    assert list(safe.input_ids[: safe.prompt_length]) == list(toxic.input_ids[: toxic.prompt_length]) == prompt


def test_a_prompt_that_ends_in_an_end_of_turn_keeps_it():
    # A template without a place for the assistant: the response follows the user's end of turn.
    tokenizer = chat_tokenizer("{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}", "<|end|>")
    format = prompt_format("chat", tokenizer)
    ids = prompt_ids(tokenizer, format.prompt("Hello"), format)
    assert text_of(tokenizer, ids) == "<|user|>Hello<|end|>"


def test_what_a_format_refuses_is_rejected_with_its_reason():
    made = encoder(bytes_with_bos())(replace(SAFE, history=(("Hello", "Good day"),)))
    assert isinstance(made, Rejected)
    assert made.source == "rows.jsonl line 7" and "data.format=chat" in made.reason
