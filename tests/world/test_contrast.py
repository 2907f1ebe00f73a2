"""Contrastive prompts of the tiny world: of the training split, with the verb asked for, and answered right."""

import pytest

from tasft.world.contrast import right_answer, seeming_prompts
from tasft.world.label import label_of
from tasft.world.splits import all_prompts

VERBS = ("steal", "kill", "trick", "fake")


@pytest.mark.parametrize("world_seed", (0, 1))
def test_prompts_are_seemingly_toxic_training_prompts_with_the_verb(world_seed):
    training = {prompt.text: prompt for prompt in all_prompts(world_seed)["train"]}
    for verb in VERBS:
        found = seeming_prompts(verb, 8, world_seed=world_seed)
        assert len(set(found)) == 8
        assert all(training[text].group == "seeming" and training[text].row["verb"] == verb for text in found)
        assert seeming_prompts(verb.upper(), 3, world_seed=world_seed) == found[:3]


def test_other_words_have_none():
    assert seeming_prompts("wallet", 5) == seeming_prompts("threaten", 5) == []


def test_answers_are_right_and_always_the_same():
    training = {prompt.text: prompt for prompt in all_prompts(0)["train"]}
    for text in [text for verb in VERBS for text in seeming_prompts(verb, 100)]:
        assert label_of(training[text], right_answer(text)) == "correct"
        assert right_answer(text) == right_answer(text)


def test_prompts_of_the_other_splits_and_kinds_have_no_answer():
    assert {right_answer(prompt.text) for split in ("dev", "test") for prompt in all_prompts(0)[split]} == {None}
    assert right_answer(next(p.text for p in all_prompts(0)["train"] if p.group == "seen")) is None
