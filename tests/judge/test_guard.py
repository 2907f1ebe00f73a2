"""Guards, on a tiny model with random weights and a chat template, against a plain loop in float64."""

import shutil
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasft.errors import UserError
from tasft.judge.guard import Guard
from tasft.judge.protocol import Score
from tasft.model.scratch import fresh_llama, train_tokenizer
from tasft.schema import Scratch

CONF = Path(__file__).parents[2] / "conf/judge/qwen3guard.yaml"
LABELS = {"Safe": "harmless", "Controversial": "harmless", "Unsafe": "harmful"}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[verdict]\n{% endif %}"
)
PROMPTS = ["How do I bake bread?", "Why?", "Tell me about a very long and winding road.", "How?", "Who?"]
RESPONSES = ["First, mix.", "So that a reader sees a longer answer to a short prompt, twice: so.", "No.", "", "Me."]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guard")
    verdicts = [f"[verdict]\nSafety: {word}" for word in LABELS] * 20
    tokenizer = train_tokenizer([*PROMPTS, *RESPONSES, *verdicts], 400)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    shape = Scratch(
        vocab_size=400, hidden_size=16, intermediate_size=32, layers=2, heads=2, max_positions=256,
        epochs=1, batch_size=8, lr=1e-3,
    )  # fmt: skip
    model = fresh_llama(shape, tokenizer)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8)  # so that verdicts differ between rows
    model.save_pretrained(folder)
    return folder


def guard(saved, **settings):
    return Guard(str(saved), **{"labels": LABELS, "opening": "Safety: ", "device": "cpu", **settings})


def plain(saved, prompt, response):
    """One row in float64, from the text of the template: P(Safe), P(Controversial), P(Unsafe), among them."""
    tokenizer = AutoTokenizer.from_pretrained(saved)
    model = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float64).eval()
    text = f"<s>[user] {prompt}\n[assistant] {response}\n[verdict]\nSafety:"
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        probabilities = model(ids).logits[0, -1].softmax(-1)
    # with its space, each word is one token here
    words = [tokenizer(f" {word}", add_special_tokens=False).input_ids for word in LABELS]
    assert [len(tokens) for tokens in words] == [1, 1, 1]
    shares = torch.stack([probabilities[tokens[0]] for tokens in words])
    return (shares / shares.sum()).tolist()


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_agrees_with_the_plain_loop_whatever_the_batch(saved, batch_size):
    scores = guard(saved, batch_size=batch_size)(PROMPTS, RESPONSES)
    assert scores[3] == Score(None, reason="empty response")
    values = []
    for i in (0, 1, 2, 4):
        shares = plain(saved, PROMPTS[i], RESPONSES[i])
        assert list(scores[i].detail) == list(LABELS)
        assert list(scores[i].detail.values()) == pytest.approx(shares, abs=1e-5)
        assert scores[i].value == pytest.approx(shares[2], abs=1e-5)
        assert scores[i].label == ("harmful" if shares[2] > shares[0] + shares[1] else "harmless")
        values.append(shares[2])
    assert max(values) - min(values) > 0.05


def test_words_of_one_label_add_up(saved):
    [loose] = guard(saved)(["Why?"], ["So."])
    [strict] = guard(saved, labels={**LABELS, "Controversial": "harmful"})(["Why?"], ["So."])
    assert strict.detail == loose.detail
    assert strict.value == pytest.approx(loose.detail["Controversial"] + loose.detail["Unsafe"])
    assert strict.value + loose.detail["Safe"] == pytest.approx(1)
    [fourfold] = guard(saved, labels={"Safe": "harmless", "Controversial": "unclear", "Unsafe": "harmful"})(
        ["W"], ["S"]
    )
    assert (
        fourfold.label
        == {"Safe": "harmless", "Controversial": "unclear", "Unsafe": "harmful"}[
            max(fourfold.detail, key=fourfold.detail.get)
        ]
    )


def test_a_long_response_loses_its_end_and_the_verdict_stays_in_its_place(saved):
    response = " ".join(f"Number {i} is next." for i in range(200))
    cutting = guard(saved, max_length=100)
    ids = cutting._ids("Why?", response)
    assert 95 <= len(ids) <= 100
    text = cutting.tokenizer.decode(ids)
    start, end = "<s>[user] Why?\n[assistant] ", "\n[verdict]\nSafety:"
    assert text.startswith(start) and text.endswith(end)
    kept = text[len(start) : -len(end)]
    assert response.startswith(kept) and len(kept) > 50
    [cut], [whole] = cutting(["Why?"], [response]), guard(saved)(["Why?"], [kept])
    assert cut == whole
    [unscored] = cutting(["Why? " * 100], ["So."])
    assert unscored == Score(None, reason="the prompt leaves the guard no room (of 100 tokens)")


def test_letters_of_several_tokens_can_be_cut(saved):
    cutting = guard(saved, max_length=60)
    for response in ("\N{SNOWMAN}" * 50, "\N{GRINNING FACE}" * 50, "a" + "\N{SNOWMAN}" * 50):
        ids = cutting._ids("Why?", response)
        assert len(ids) <= 60
        assert response.startswith(cutting.tokenizer.decode(ids).split("[assistant] ")[1].split("\n")[0])


def test_prompts_and_responses_have_to_pair_up(saved):
    with pytest.raises(ValueError):
        guard(saved)(["a"], [])
    assert guard(saved)([], []) == []


def test_a_model_that_would_not_write_a_label_is_reported(saved, caplog):
    guard(saved)(["Why?"], ["So."])  # an untrained one
    assert "of the probability is on the labels of the guard" in caplog.text


def test_what_cannot_work_is_seen_before_any_weight_is_loaded(saved, tmp_path):
    with pytest.raises(UserError, match=r"labels Safe, Safer, Unsafe begin alike: give words that differ at once$"):
        guard(saved, labels={"Safe": "harmless", "Safer": "harmless", "Unsafe": "harmful"})
    with pytest.raises(UserError, match="begin alike"):  # one is how the other begins
        guard(saved, labels={"Safe": "harmless", "Safe!": "harmful"})
    with pytest.raises(UserError, match="make no word 'harmful': give labels"):
        guard(saved, labels={"Safe": "good", "Unsafe": "bad"})
    with pytest.raises(UserError, match=r"^the guard's path=/no/such: no such folder$"):
        guard("/no/such")
    copy = shutil.copytree(saved, tmp_path / "copy")
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="has no chat template: use a model that has one"):
        guard(copy)


def test_a_guard_of_the_hub_without_access_is_seen_at_once(refusing_hub):
    id, sentence = refusing_hub
    with pytest.raises(UserError, match=rf"^the guard's path={id} .*{sentence}"):
        guard(id)


def test_the_config_builds_a_guard(saved):
    node = OmegaConf.load(CONF).qwen3guard
    built = instantiate(node, path=str(saved), device="cpu")
    assert built(["Why?"], ["So."]) == guard(saved)(["Why?"], ["So."])
