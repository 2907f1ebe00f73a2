"""Training prompts that a benchmark asks, too, and what becomes of them (data.contamination)."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

from tasft.benchmark.prompts import BenchmarkPrompt
from tasft.data.kept import MOST, digest
from tasft.data.overlap import Overlap, overlaps
from tasft.errors import UserError
from tasft.schema import Contamination

log = logging.getLogger(__name__)


def contaminated(
    texts: Mapping[str, str], benchmarks: Mapping[str, Sequence[BenchmarkPrompt]], settings: Contamination
) -> dict[str, str]:
    """Prompt -> why it is to be dropped; `texts` maps each prompt to its place.

    Equal prompts and near-duplicates from `settings.similarity` on are counted in the log; the policy `report` drops
    none, `refuse` raises UserError.
    """
    prompts = list(texts)
    asked = {name: [prompt.text for prompt in each] for name, each in benchmarks.items()}
    found = _overlaps(prompts, asked, settings.similarity)
    if not found:
        return {}
    counts = ", ".join(f"{count} {name}" for name, count in Counter(each.benchmark for each in found).most_common())
    near = sum(each.similarity < 1 for each in found)
    said = f"{len(found)} of these prompts are those of benchmarks ({counts}; {near} of them near-duplicates)"
    if settings.policy == "refuse":
        first = prompts[found[0].index]
        raise UserError(
            f"{said}, the first {first[:60]!r} ({texts[first]}): data.contamination.policy=drop leaves such rows out,"
            " report keeps them"
        )
    log.info("contamination: %s; %s", said, "dropped" if settings.policy == "drop" else "kept")
    if settings.policy == "report":
        return {}
    return {
        prompts[each.index]: f"{'asked' if each.similarity == 1 else 'nearly asked'} by benchmark {each.benchmark}"
        for each in found
    }


_found: dict[str, list[Overlap]] = {}


def _overlaps(prompts: list[str], asked: dict[str, list[str]], similarity: float) -> list[Overlap]:
    """`overlaps`, once for all cells of a grid that a process runs."""
    key = digest(prompts, asked, similarity)
    if key not in _found:
        if len(_found) == MOST:
            _found.clear()
        _found[key] = overlaps(prompts, asked, similarity)
    return _found[key]
