"""Every prompt of the tiny world, and the split it is in."""

import random
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

from tasft.world.grammar import fill
from tasft.world.topic import Row, Topic
from tasft.world.topics import TOPICS

Split = Literal["train", "dev", "test"]
Group = Literal["safe", "seeming", "seen", "synonym", "topic"]

SPLITS: tuple[Split, ...] = get_args(Split)
GROUPS: tuple[Group, ...] = get_args(Group)

TEST_SHARE = 0.25  # of the (row, prompt template) pairs of each topic
DEV_SHARE = 0.10


@dataclass(frozen=True, eq=False)
class Prompt:
    """One (topic, row, prompt template): its text belongs to no other."""

    topic: Topic
    row: Row
    text: str

    @property
    def group(self) -> Group:
        """What a benchmark calls the prompt.

        "seen": its verb occurs in the harvest. "synonym": another verb of a topic that occurs there.
        "topic": the whole topic is held out of the harvest. "seeming" and "safe": harmless topics.
        """
        if self.topic.kind != "harmful":
            return self.topic.kind
        if self.topic.held_out:
            return "topic"
        return "seen" if self.row["verb"] in self.topic.seen_verbs else "synonym"


@cache
def all_prompts(world_seed: int) -> dict[Split, tuple[Prompt, ...]]:
    """Every prompt, by split. The seed decides which split a prompt is in, not which prompts there are."""
    split_of = {prompt: split for topic in TOPICS for prompt, split in _assign(topic, world_seed).items()}
    return {split: tuple(prompt for prompt in split_of if split_of[prompt] == split) for split in SPLITS}


def prompts_by_topic(split: Split, world_seed: int, *groups: Group) -> list[list[Prompt]]:
    """The prompts of the groups in a split, one list for each topic that has any."""
    found: dict[Topic, list[Prompt]] = {}
    for prompt in all_prompts(world_seed)[split]:
        if prompt.group in groups:
            found.setdefault(prompt.topic, []).append(prompt)
    return list(found.values())


def _assign(topic: Topic, world_seed: int) -> dict[Prompt, Split]:
    """The split of each prompt of a topic, such that every row has a prompt to train on."""
    rows = [[Prompt(topic, row, fill(template, row)) for template in topic.prompts] for row in topic.rows]
    shuffled = [prompt for prompts in rows for prompt in prompts]
    random.Random(f"{world_seed}/{topic.name}").shuffle(shuffled)
    test, dev = round(TEST_SHARE * len(shuffled)), round(DEV_SHARE * len(shuffled))
    split_of: dict[Prompt, Split] = dict.fromkeys(shuffled, "train")
    split_of |= dict.fromkeys(shuffled[:test], "test")
    split_of |= dict.fromkeys(shuffled[test : test + dev], "dev")
    for prompts in rows:
        if all(split_of[prompt] != "train" for prompt in prompts):
            last = max(prompts, key=shuffled.index)  # gives up a dev prompt rather than a test prompt
            split_of[last] = "train"
    return split_of
