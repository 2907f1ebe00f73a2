"""Chat templates beside the tokens that a run is trained on, with tokenizers of several kinds."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tasft.data.example import Example
from tasft.data.tokenize import Encoder
from tasft.export.template import differing, templates
from tasft.model.scratch import train_tokenizer
from tasft.prompt import ChatFormat, prompt_format

TEXTS = ["### Instruction:\nName a fruit.\n\n### Response:\nAn apple is a fruit.", "Below is an instruction that"]
ASKED = [("Name a fruit.", "An apple."), ("  two\n\nlines ", "No."), ("", "?"), ("Who said 'x' and \"y\"?", "")]
CHAT = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def byte_level(bos):
    tokenizer = train_tokenizer(TEXTS, 300)
    if not bos:
        tokenizer._tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def metaspace(scheme):
    """As Llama's: a space before the first word, by the normalizer (legacy) or of the very first word alone."""
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    legacy = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    bpe.normalizer = normalizers.Sequence(legacy) if scheme == "legacy" else None
    bpe.pre_tokenizer = None if scheme == "legacy" else pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    bpe.train_from_iterator([text.replace("\n", " ") for text in TEXTS], trainer)
    bpe.add_tokens([AddedToken("\n", normalized=False)])
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {
    "byte level with BOS": (lambda: byte_level(True), "<s>"),
    "byte level without BOS": (lambda: byte_level(False), ""),
    "legacy metaspace": (lambda: metaspace("legacy"), "<s>"),
    "metaspace of the first word": (lambda: metaspace("first"), "<s> "),
}


@pytest.mark.parametrize("name", ["short", "stl"])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_template_gives_the_runs_tokens(kind, name):
    make, start = TOKENIZERS[kind]
    own, tokenizer = make(), make()
    format = prompt_format(name, own)
    fitting = []
    for template in templates(format, own):
        tokenizer.chat_template = template
        if differing(tokenizer, format, own, ASKED) is None:
            fitting.append(template)
    tokenizer.chat_template = fitting[0]
    asked = [{"role": "user", "content": "Name a fruit."}]
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert text == start + format.prompt("Name a fruit.")
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert ids == own(format.prompt("Name a fruit."))["input_ids"]
    answered = [*asked, {"role": "assistant", "content": "An apple."}]
    row = Encoder(own, format, 999)(Example("Name a fruit.", "An apple.", False, ""))
    assert tuple(tokenizer.apply_chat_template(answered, return_dict=False)) == row.input_ids
    assert row.input_ids[-1] == own.eos_token_id and row.input_ids.count(own.bos_token_id) == (1 if start else 0)
    without = tokenizer.apply_chat_template(asked, tokenize=False)
    assert text.removeprefix(without) == "### Response:\n"


def test_a_rows_input_has_its_place():
    own = byte_level(True)
    for name in ("short", "stl"):
        format = prompt_format(name, own)
        own.chat_template = templates(format, own)[0]
        message = {"role": "user", "content": "Translate {input}.", "input": "Bon {prompt}"}
        text = own.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        assert text == "<s>" + format.prompt("Translate {input}.", "Bon {prompt}")


def test_another_template_is_noticed():
    own = byte_level(True)
    other = byte_level(True)
    other.chat_template = templates(prompt_format("short", own), own)[0]
    assert differing(other, prompt_format("short", own), own, ASKED) is None
    assert differing(other, prompt_format("stl", own), own, ASKED) == "Name a fruit."
    other.chat_template = other.chat_template.replace("'content'] + eos_token", "'content']")
    assert differing(other, prompt_format("short", own), own, ASKED) == "Name a fruit."  # nothing would end an answer


def test_no_system_prompt_and_no_earlier_turns():
    own = byte_level(True)
    own.chat_template = templates(prompt_format("short", own), own)[0]
    user, assistant = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    for messages in ([{"role": "system", "content": "s"}, user], [user, assistant, user], [assistant], [user, user]):
        with pytest.raises(Exception, match="no system prompt, no earlier turns"):
            own.apply_chat_template(messages)


def test_the_runs_system_prompt_is_there_where_none_is_given():
    own, tokenizer = byte_level(True), byte_level(True)
    own.chat_template = CHAT
    format = ChatFormat(own, 'Say "no" \\ to harm.\n')
    [tokenizer.chat_template] = templates(format, own)
    assert differing(tokenizer, format, own, ASKED) is None
    user, system = {"role": "user", "content": "a"}, {"role": "system", "content": "s"}
    assert tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True) == format.prompt("a")
    assert tokenizer.apply_chat_template([system, user], tokenize=False) == "<|system|>s</s><|user|>a</s>"
    assert templates(ChatFormat(own), own) == [CHAT]
