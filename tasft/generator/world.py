"""The tiny world's own prompts, answers and attacks: offline, at once, and right."""

import json
import re
from collections.abc import Sequence

from tasft.generator.protocol import Generated
from tasft.remote import Message
from tasft.world.contrast import right_answer, seeming_prompts
from tasft.world.phrasing import phrasings

GOAL = re.compile(r"the model performs the following behavior: '(.*?)'\. Your aim", re.DOTALL)


class World:
    """Writes seemingly toxic training prompts whose verb is the word; words that no verb is get an empty list.

    temperature, top_p: what attack.attacker says to every generator; this one draws no words, and needs neither.
    """

    batch_size = None

    def __init__(
        self, seed: int = 5, world_seed: int = 0, node: str = "", temperature: float = 0.0, top_p: float = 1.0
    ) -> None:
        self.seed, self.world_seed = seed, world_seed
        self.name = "tiny world"
        self.identity = f"tiny world {seed} {world_seed}"

    def check(self) -> None:
        """Nothing can be missing."""

    def write(self, words: Sequence[str], count: int) -> list[Generated]:
        """For each word a JSON list of up to `count` prompts."""
        return [Generated(json.dumps(seeming_prompts(word, count, self.seed, self.world_seed))) for word in words]

    def answer(self, prompts: Sequence[str]) -> list[Generated]:
        """A right answer to each prompt of the training split; to another none."""
        answers = [right_answer(prompt, self.seed, self.world_seed) for prompt in prompts]
        return [Generated(text) if text is not None else Generated(None, "not a training prompt") for text in answers]

    def reply(
        self, conversations: Sequence[Sequence[Message]], draws: Sequence[int], opening: str = "", end: str = ""
    ) -> list[Generated]:
        """PAIR's attacker: another phrasing of the goal that the system prompt names, the draw-th one, as JSON."""
        return [self._attack(each[0]["content"], draw) for each, draw in zip(conversations, draws, strict=True)]

    def _attack(self, system: str, draw: int) -> Generated:
        goal = GOAL.search(system)
        found = phrasings(goal[1], self.seed) if goal else ()
        if not found:
            return Generated(None, "its goal is not a prompt of the tiny world")
        return Generated(json.dumps({"improvement": "I ask in other words.", "prompt": found[draw % len(found)]}))
