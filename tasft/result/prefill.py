"""What `tasft.prefill` leaves in a run's folder, and what is read from it.

    prefill/<source>/responses/<benchmark>-<n>@<step>.jsonl     answers of which the first n tokens were given
    prefill/<source>/scores/<benchmark>-<n>@<step>.<judge>.jsonl            of the whole answer
    prefill/<source>/scores/<benchmark>-<n>-continued@<step>.<judge>.jsonl  of what the model added, by judges of harm
    prefill/<source>/config.yaml                                the judges; which harmful answers are begun, a digest

<source> is `benchmark`, or the name of the folder of the run whose harmful answers are begun.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasft.errors import UserError
from tasft.result.outcome import Judged, joint
from tasft.result.statistics import Rate
from tasft.result.store import RunDir, read_config

_NAME = re.compile(r"(?P<benchmark>.+)-(?P<tokens>\d+)(?P<alone>-continued)?")


@dataclass(frozen=True)
class Point:
    """Harmful answers to a benchmark with `tokens` tokens given: of the whole, or of what the model added `alone`.

    The whole answer's outcome is the joint one of all judges, what is added is judged by the judge of harm.
    """

    benchmark: str
    tokens: int
    alone: bool
    harmful: Rate
    judge: str  # of harm
    shorter: int  # answers whose beginning was given whole, as it has fewer than so many tokens


def folder_of(run: RunDir, source: str) -> RunDir:
    """Where the answers lie that begin with those of `source`."""
    return RunDir(run.path / "prefill" / source)


def prefilled(benchmark: str, tokens: int) -> str:
    """The name of the answers of which `tokens` tokens were given, and of the scores of the whole."""
    return f"{benchmark}-{tokens}"


def continued(benchmark: str, tokens: int) -> str:
    """The name of the scores of what the model has added."""
    return f"{prefilled(benchmark, tokens)}-continued"


def sources(run: RunDir) -> list[str]:
    """What a run has been prefilled from, sorted."""
    return sorted(file.parent.name for file in (run.path / "prefill").glob("*/config.yaml"))


def points(run: RunDir, source: str, judges: Sequence[str] | None = None) -> list[Point]:
    """The rate of harmful answers for each benchmark, count of tokens, and part of the answer, in this order.

    One judge of harm decides all of a benchmark: of `judges` (None: all that have judged) the one with the most to say
    of all benchmarks, the first of those, so that wherever one has judged them all it decides them all; what it has not
    judged is left out, and so are continuations of other harmful answers than the last ones. With no tokens given all
    of the answer is the model's own: both parts are the same. UserError for a damaged file.
    """
    folder = folder_of(run, source)
    noted = read_config(folder.config)
    configs, last = noted.get("judge", {}), noted.get("answers", {})
    order = [name for name in (configs if judges is None else judges) if name in configs]
    found: dict[tuple[str, int, bool], list[Judged]] = defaultdict(list)
    shorter: dict[tuple[str, int], int] = {}
    for name, step, judge in folder.scores_present():
        parsed, outcomes = _NAME.fullmatch(name), (configs.get(judge) or {}).get("outcomes")
        if parsed and outcomes and judge in order and configs[judge].get("joint") is not False:
            key = (parsed["benchmark"], int(parsed["tokens"]), parsed["alone"] is not None)
            decided = folder.read_settings(prefilled(*key[:2]), step)
            if key[0] in last and decided.get("answers") != last[key[0]]:
                continue
            found[key].append(Judged(judge, outcomes, folder.read_scores(name, step, judge)))
            shorter[key[:2]] = decided.get("shorter", 0)
    said = Counter(each.judge for of_key in found.values() for each in of_key if _of_harm(each))
    decides = {
        name: max(judges, key=lambda judge: (said[judge], -order.index(judge)))
        for name, judges in _judges_of_harm(found).items()
    }
    rates = {}
    for key, judged in found.items():
        deciding = [each for each in judged if each.judge == decides.get(key[0])]
        others = [each for each in judged if not _of_harm(each)]
        if deciding:
            together = sorted(deciding + others, key=lambda each: order.index(each.judge))
            rates[key] = _harmful(folder, deciding if key[2] else together)
            if key[1] == 0:
                rates[key[0], 0, True] = _harmful(folder, deciding)
    return [Point(*key, rate, decides[key[0]], shorter[key[:2]]) for key, rate in sorted(rates.items())]


def _judges_of_harm(found: Mapping[tuple[str, int, bool], Sequence[Judged]]) -> dict[str, set[str]]:
    """Of each benchmark those that have judged harm."""
    judges: dict[str, set[str]] = defaultdict(set)
    for (name, _, _), judged in found.items():
        judges[name] |= {each.judge for each in judged if _of_harm(each)}
    return {name: of_harm for name, of_harm in judges.items() if of_harm}


def _of_harm(judged: Judged) -> bool:
    return "harmful" in judged.outcomes.values()


def _harmful(folder: RunDir, judged: list[Judged]) -> Rate:
    try:
        counts = Counter(each.value for each in joint(judged).rows)
    except ValueError as error:
        raise UserError(f"{folder.path}: {error}: judge that again") from None
    unscored = counts.pop(None, 0)
    return Rate(counts["harmful"], counts.total(), unscored)
