"""The tiny world's own prompts and answers: offline, at once, and right."""

import json
from collections.abc import Sequence

from tasft.generator.protocol import Reply
from tasft.world.contrast import right_answer, seeming_prompts


class World:
    """Writes seemingly toxic training prompts whose verb is the word; words that no verb is get an empty list."""

    batch_size = None

    def __init__(self, seed: int = 5, world_seed: int = 0, node: str = "") -> None:
        self.seed, self.world_seed = seed, world_seed
        self.name = "tiny world"
        self.identity = f"tiny world {seed} {world_seed}"

    def check(self) -> None:
        """Nothing can be missing."""

    def write(self, words: Sequence[str], count: int) -> list[Reply]:
        """For each word a JSON list of up to `count` prompts."""
        return [Reply(json.dumps(seeming_prompts(word, count, self.seed, self.world_seed))) for word in words]

    def answer(self, prompts: Sequence[str]) -> list[Reply]:
        """A right answer to each prompt of the training split; to another none."""
        answers = [right_answer(prompt, self.seed, self.world_seed) for prompt in prompts]
        return [Reply(text) if text is not None else Reply(None, "not a training prompt") for text in answers]
