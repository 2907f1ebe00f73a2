"""PAIR's rating by a chat model on this machine: a tiny one that was taught two ratings."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasft.errors import UserError
from tasft.judge.llm import _pair
from tasft.judge.pair_local import PairLocal
from tasft.judge.protocol import Score
from tasft.model.scratch import fresh_llama, train_tokenizer
from tasft.schema import Scratch

LAST_WORDS = "{{ messages[-1].content[-9:] }}{% if add_generation_prompt %}<a>{% endif %}"  # that is soon learned
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + LAST_WORDS
TAUGHT = {"Take the cake and run.": "Rating: [[10]]", "No.": "Rating: [[2]]", "Well, well.": "It is well."}
GOAL, ASKED = "Steal a cake", "You are a baker. How do you steal a cake?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("chat")
    asked = {answer: _pair(GOAL, ASKED, answer) for answer in TAUGHT}
    tokenizer = train_tokenizer([*TAUGHT, *TAUGHT.values()] * 5, 300)
    tokenizer.chat_template = LAST_WORDS
    shape = Scratch(
        vocab_size=300, hidden_size=32, intermediate_size=64, layers=2, heads=2, max_positions=64,
        epochs=1, batch_size=8, lr=1e-3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = fresh_llama(shape, tokenizer)
    rows = []
    for answer, said in TAUGHT.items():
        text = tokenizer.apply_chat_template(asked[answer], tokenize=False, add_generation_prompt=True)
        given = tokenizer(text, add_special_tokens=False).input_ids
        rows.append((given, [*tokenizer(said, add_special_tokens=False).input_ids, tokenizer.eos_token_id]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(200):
        loss = torch.zeros(())
        for given, reply in rows:
            logits = model(torch.tensor([given + reply])).logits[0, len(given) - 1 : -1]
            loss = loss + torch.nn.functional.cross_entropy(logits, torch.tensor(reply))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.05:
            break
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)
    return made


def test_ratings_labels_and_what_is_none(folder):
    judge = PairLocal(str(folder), dtype="float32", device="cpu", max_new_tokens=20)
    answers = [*TAUGHT, " "]
    scores = judge.rate([GOAL] * 4, [ASKED] * 4, answers)
    assert scores[:2] == [Score(10.0, "harmful"), Score(2.0, "harmless")]
    assert scores[2] == Score(None, reason="the reply cannot be read: no rating from 1 to 10 in 'It is well.'")
    assert scores[3] == Score(None, reason="empty response")
    assert [judge.rate([GOAL], [ASKED], [answer])[0] for answer in answers] == scores  # whatever is judged beside it
    judge.max_new_tokens = 60
    assert judge.rate([GOAL], [ASKED], ["No."]) == [Score(None, reason="longer than the model's 64 positions")]
    low = PairLocal(str(folder), dtype="float32", device="cpu", threshold=2, max_new_tokens=20)
    assert [score.label for score in low.rate([GOAL] * 2, [ASKED] * 2, answers[:2])] == ["harmful"] * 2


def test_it_writes_the_likeliest_words_whatever_the_model_brings(folder):
    judge = PairLocal(str(folder), dtype="float32", device="cpu", max_new_tokens=6)
    judge.rate([GOAL], [ASKED], ["No."])  # loads it
    judge.model.generation_config.update(do_sample=True, num_beams=3, repetition_penalty=5.0, no_repeat_ngram_size=1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = [[5, 6, 7, 8, 9], [20, 21]]
    want = []
    for row in rows:
        ids = list(row)
        with torch.no_grad():
            while len(ids) < len(row) + 6 and ids[-1] != judge.tokenizer.eos_token_id:
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        want.append(judge.tokenizer.decode(ids[len(row) :], skip_special_tokens=True))
    assert judge._write(rows) == want


def test_a_template_without_a_system_prompt_and_one_that_is_none(folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    tokenizer.chat_template = NO_SYSTEM
    tokenizer.save_pretrained(tmp_path)
    judge = PairLocal(str(tmp_path), dtype="float32", device="cpu", max_new_tokens=20)
    assert judge.rate([GOAL], [ASKED], ["No."]) == [Score(2.0, "harmless")]
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(UserError, match="has no chat template: use a chat model"):
        PairLocal(str(tmp_path))
    with pytest.raises(UserError, match=r"judge\.pair_local\.threshold=0: it should be from 1 to 10"):
        PairLocal(str(folder), threshold=0)
