"""Seemingly toxic prompts of the training split, by the verb that makes them seem so, and their answers."""

import random
from functools import cache

from tasft.world.corpus import answer
from tasft.world.splits import Prompt, prompts_by_topic


def seeming_prompts(verb: str, count: int, seed: int = 5, world_seed: int = 0) -> list[str]:
    """Up to `count` distinct seemingly toxic training prompts with this verb, in a seeded order; none for other words.

    A smaller count gives the first prompts of a larger one.
    """
    found = [text for text, prompt in _training(world_seed).items() if prompt.row["verb"] == verb.lower()]
    random.Random(f"{seed}/{verb.lower()}").shuffle(found)
    return found[:count]


def right_answer(text: str, seed: int = 5, world_seed: int = 0) -> str | None:
    """A right answer to a seemingly toxic training prompt, always the same; None for any other text."""
    prompt = _training(world_seed).get(text)
    return None if prompt is None else answer(prompt, random.Random(f"{seed}/{text}"))


@cache
def _training(world_seed: int) -> dict[str, Prompt]:
    return {prompt.text: prompt for topic in prompts_by_topic("train", world_seed, "seeming") for prompt in topic}
