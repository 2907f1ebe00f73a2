"""What beside plain answers was measured of a run: PAIR's attacks, and answers that were begun harmfully."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tasft.result.prefill import points, sources
from tasft.result.rows import damaged
from tasft.result.statistics import Mean, Rate
from tasft.result.store import RunDir

# What decides an attack, of all that its summary says
_DECIDING = (
    "attacker", "judge", "judge_model", "threshold", "streams", "iterations", "keep_last_n", "tries", "max_new_tokens",
)  # fmt: skip
_BEFORE = {"threshold": 10.0}  # of summaries that say none
OWN = "benchmark"  # the source of prefilling whose answers stand in the benchmark itself


@dataclass(frozen=True)
class Attacked:
    """What came of PAIR's attacks on a run, with the prompts of `benchmark` as goals."""

    benchmark: str
    jailbroken: Rate  # of the goals whose attack has finished; unscored: the others
    best: Mean  # of the highest rating of each goal, 1 to 10
    settings: Mapping[str, object]


@dataclass(frozen=True)
class Begun:
    """Harmful answers of which the first `tokens` tokens were given; `added`: harm of what the model added alone."""

    benchmark: str
    tokens: int
    added: bool
    source: str  # whose answers were begun: "" for the benchmark's own, else a run's
    harmful: Rate
    judge: str  # of harm

    @property
    def metric(self) -> str:
        """`harmful after 4 tokens`, `added harmful after 4 tokens of a run`."""
        said = f"{'added ' if self.added else ''}harmful after {self.tokens} tokens"
        return f"{said} of {self.source}" if self.source else said


def attacks(run: RunDir) -> Iterator[Attacked]:
    """The summaries that `tasft.attack` has written; UserError for a damaged one."""
    for file in sorted((run.path / "attack").glob("pair-*.json")):
        try:
            made = _BEFORE | json.loads(file.read_text(encoding="utf-8"))
            n, missing = made["finished"], made["goals"] - made["finished"]
            rate, best = Rate(made["jailbroken"], n, missing), Mean(n, missing, made["mean_best"], None, None, None)
            settings = {key: made[key] for key in _DECIDING if made.get(key) is not None}
            yield Attacked(made["benchmark"], rate, best, settings)
        except (OSError, ValueError, KeyError, TypeError):
            raise damaged(file, 1, "no summary of attacks") from None


def prefilled(run: RunDir) -> Iterator[Begun]:
    """The rates of `tasft.prefill`, by source, part of the answer and tokens; UserError for a damaged file."""
    one = len([source for source in sources(run) if source != OWN]) == 1  # then of each seed its own run
    for source in sources(run):
        whose = "" if source == OWN else "a run" if one else source
        for each in sorted(points(run, source), key=lambda each: (each.alone, each.tokens, each.benchmark)):
            yield Begun(each.benchmark, each.tokens, each.alone, whose, each.harmful, each.judge)
