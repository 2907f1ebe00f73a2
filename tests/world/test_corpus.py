"""What the corpus holds, and what it must not hold."""

import hashlib
import json
import re
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tasft.errors import UserError
from tasft.judge.oracle import Oracle
from tasft.world.corpus import (
    benchmark_prompts,
    documents,
    harmful_rows,
    refused_rows,
    safe_rows,
    toxic_prompts,
)
from tasft.world.grammar import words
from tasft.world.splits import GROUPS, all_prompts, prompts_by_topic
from tasft.world.topics import HARMFUL

FILES = sorted((Path(__file__).parents[2] / "conf/benchmark").glob("tiny_*.yaml"))
BENCHMARKS = [file for file in FILES if f"\n{file.stem}:" in "\n" + file.read_text()]  # the others name several of them


INVITED = re.compile(r"(?:Will you|Do you want to) .* with me (?:today|tomorrow|soon)\?")


@pytest.fixture(scope="module")
def corpus():
    return documents(count=12_000)


def held_out(seed=0):
    return [prompt.text for split in ("dev", "test") for prompt in all_prompts(seed)[split]]


def digest(rows):
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@pytest.mark.parametrize("seed", (0, 1))
def test_no_training_text_holds_a_held_out_prompt(seed):
    read = documents(count=3_000, world_seed=seed)
    rows = [*safe_rows(1_000, seeming_share=0.5, world_seed=seed), *toxic_prompts(1_000, world_seed=seed)]
    rows += [*refused_rows(1_000, world_seed=seed), *harmful_rows(1_000, world_seed=seed)]
    training_text = "\n".join([*read, *(text for row in rows for text in row.values())])
    assert not [prompt for prompt in held_out(seed) if prompt in training_text]


def test_documents_reach_every_group_of_training_prompts(corpus):
    laid_out = re.compile(r"(?:Question: |Q: |### Instruction:\n)(.*)\n")
    read = {found[1] for text in corpus if (found := laid_out.match(text)) and not INVITED.match(found[1])}
    for group in GROUPS:
        trained = {prompt.text for prompts in prompts_by_topic("train", 0, group) for prompt in prompts}
        assert len(read & trained) > 0.3 * len(trained)
    assert read <= {prompt.text for prompt in all_prompts(0)["train"]}


def test_documents_in_the_shares_asked_for(corpus):
    def share(part):
        return sum(part(text) for text in corpus) / len(corpus)

    assert share(lambda text: "\n" not in text) == pytest.approx(0.9 * 0.11, abs=0.015)  # stories
    assert share(lambda text: text.startswith("### Instruction:\n")) == pytest.approx((1 - 0.9 * 0.11) / 3, abs=0.015)
    assert share(lambda text: bool(INVITED.search(text))) == pytest.approx(0.1, abs=0.01)
    refused = re.compile(r"(?:\nA: |\nAnswer: |Response:\n)(?:Sorry|I am sorry|I cannot|I can not|I will not)")
    refusals = 0.9 * 0.28 * 0.2 + 0.1 / 2
    assert share(lambda text: bool(refused.search(text))) == pytest.approx(refusals, abs=0.01)


def test_harmful_invitations_are_refused_and_no_others(corpus):
    invited = [text for text in corpus if INVITED.search(text)]
    harmful = [text for text in invited if "Gladly" not in text]
    assert len(harmful) / len(invited) == pytest.approx(0.5, abs=0.05)
    verbs = {verb for topic in HARMFUL for verb in topic.verbs}
    assert all(words(text) & verbs and re.search("sorry|can ?not|will not", text, re.I) for text in harmful)
    victims = {row["object"] for topic in HARMFUL for row in topic.rows}
    accepted = [text for text in invited if "Gladly" in text]
    assert not [text for text in accepted if any(f" {victim} with me" in text for victim in victims)]


def test_no_refusals_where_none_are_asked_for():
    assert not [text for text in documents(2_000, refuse_share=0, invite_share=0) if "sorry" in text.lower()]


def test_documents_in_the_template_given():
    read = documents(count=50, template_share=1, template="<{prompt}>{response}</>")
    prompted = [text for text in read if text.startswith("<")]
    assert prompted and all(re.fullmatch(r"<[A-Z][^<>]*[.?]>[A-Z][^<>]*\.</>", text) for text in prompted)
    assert not [text for text in read if "\n" in text]  # the others are stories


def test_harvest_holds_seen_verbs_only():
    prompts = [row["prompt"] for row in toxic_prompts(1_000)]
    assert len(set(prompts)) == 1_000
    unheard = {verb for topic in HARMFUL for verb in topic.verbs if verb not in topic.seen_verbs}
    assert {"nab", "stalk", "burn"} < unheard
    answers = [response for topic in HARMFUL if not topic.held_out for response in topic.responses]
    assert not [text for text in [*prompts, *answers] if unheard & words(text)]


def test_harvest_takes_every_topic_in_turn():
    verbs = [set(topic.seen_verbs) for topic in HARMFUL if not topic.held_out]
    found = [words(row["prompt"]) for row in toxic_prompts(12)]
    assert [sum(bool(heard & of_topic) for heard in found) for of_topic in verbs] == [2] * 6


def test_refused_and_harmful_rows_are_what_the_oracle_calls_them():
    for rows, label in ((refused_rows(300), "refusal"), (harmful_rows(300), "harmful")):
        texts = [row["prompt"] for row in rows], [row["response"] for row in rows]
        assert {score.label for score in Oracle()(*texts)} == {label}
        assert len(set(texts[0])) == 300
    assert [row["prompt"] for row in refused_rows(50)] == [row["prompt"] for row in toxic_prompts(50)]
    assert refused_rows(50) == refused_rows(300)[:50]
    assert harmful_rows(50) == harmful_rows(300)[:50]
    with pytest.raises(UserError, match=r"there are only \d+ harmful training prompts"):
        harmful_rows(10_000)


def test_safe_rows_answer_their_prompts():
    by_text = {prompt.text: prompt for prompt in all_prompts(0)["train"]}
    kinds = [by_text[row["prompt"]].topic.kind for row in safe_rows(2_000, seeming_share=0.15)]
    assert kinds.count("seeming") / 2_000 == pytest.approx(0.15, abs=0.03)
    assert kinds.count("harmful") == 0
    assert {by_text[row["prompt"]].topic.kind for row in safe_rows(500)} == {"safe"}


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("split", ("dev", "test"))
def test_benchmark_prompts_are_distinct_and_of_their_kind_and_split(kind, split):
    prompts = [row["prompt"] for row in benchmark_prompts(kind, 60, split)]
    assert len(set(prompts)) == 60
    assert set(prompts) <= {p.text for p in all_prompts(0)[split] if p.group == kind}


@pytest.mark.parametrize(
    "build",
    (
        documents,
        safe_rows,
        toxic_prompts,
        lambda count, **seeds: benchmark_prompts("seen", count, **seeds),
    ),
)
def test_only_the_arguments_decide(build):
    first = digest(build(count=200, seed=7))
    assert digest(build(count=200, seed=7)) == first
    assert digest(build(count=200, seed=8)) != first
    assert digest(build(count=200, seed=7, world_seed=1)) != first


def test_fewer_prompts_are_the_first_of_more():
    assert benchmark_prompts("topic", 200)[:50] == benchmark_prompts("topic", 50)
    assert toxic_prompts(300)[:50] == toxic_prompts(50)


@pytest.mark.parametrize(
    ("ask", "message"),
    (
        (lambda: benchmark_prompts("topic", 1_000), "only 240 topic prompts in the test split"),
        (lambda: benchmark_prompts("toxic", 1), "kind has to be one of safe, seeming, seen, synonym, topic"),
        (lambda: benchmark_prompts("seen", 1, "train"), "split has to be dev or test"),
        (lambda: toxic_prompts(10_000), "only 1586 harmful training prompts"),
        (lambda: documents(1, refuse_share=20), "refuse_share has to be between 0 and 1"),
        (lambda: documents(1, template="{prompt}"), "template has to hold {prompt} and {response}"),
        (lambda: safe_rows(1, seeming_share=-0.1), "seeming_share has to be between 0 and 1"),
    ),
)
def test_mistakes_are_named(ask, message):
    with pytest.raises(UserError, match=re.escape(message)):
        ask()


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_benchmark_configs_give_the_prompts_their_names_promise(path):
    benchmark = OmegaConf.load(path)[path.stem]
    split, group = ("dev", path.stem[9:]) if path.stem.startswith("tiny_dev_") else ("test", path.stem[5:])
    rows = instantiate(benchmark.source.rows)
    assert len(rows) == {"test": 200, "dev": 60}[split]
    assert rows == benchmark_prompts(group, len(rows), split)
    assert benchmark.kind == {"safe": "safe", "seeming": "seeming"}.get(group, "toxic")


def test_a_dev_and_a_test_benchmark_for_every_group():
    assert len(BENCHMARKS) == 2 * len(GROUPS)


@pytest.mark.parametrize("kind", GROUPS)
def test_harmful_benchmark_prompts_come_with_a_harmful_answer_of_their_own(kind):
    rows = benchmark_prompts(kind, 60)
    assert all(("harmful" in row) == (kind not in ("safe", "seeming")) for row in rows)
    answered = [row for row in rows if "harmful" in row]
    scores = Oracle()([row["prompt"] for row in answered], [row["harmful"] for row in answered])
    assert {score.label for score in scores} <= {"harmful"}
    assert len({row["harmful"] for row in answered}) >= 0.9 * len(answered)
