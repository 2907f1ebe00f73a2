"""settings.csv: every rate and mean score of every setting, seeds together, as the tables have them."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tasft.report.summary import Summary
from tasft.result.statistics import estimate
from tasft.result.table import Measurement


@dataclass(frozen=True)
class OfSetting:
    """One rate, a fraction, or mean score of a setting at its last step: tasft.result.statistics.Estimate in a line.

    `variant` and `judges` are the table's: where not all runs are judged alike, the variant says by whom.
    """

    model: str
    loss: str
    toxic: int
    weight: float | None
    share: float | None
    variant: str
    seeds: str  # `0 1 2`
    benchmark: str
    kind: str
    judge: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    spread: float | None
    runs: int
    n: int
    most: int
    unscored: int
    judges: str


def by_setting(summaries: Sequence[Summary]) -> Iterator[OfSetting]:
    """In the order of the tables, everything that was measured of each setting."""
    for summary in summaries:
        for line in summary.lines:
            found: dict[tuple[str, str, str, str], list[Measurement]] = defaultdict(list)
            for row in summary.of(line.setting):
                found[row.benchmark, row.kind, row.judge, row.metric].append(row)
            for which, rows in found.items():
                made, judges = estimate(rows), "; ".join(sorted({row.judges for row in rows}))
                seeds = " ".join(str(row.seed) for row in sorted(rows, key=lambda row: row.seed))
                setting = line.setting
                name = (setting.loss, setting.toxic, setting.weight, line.share, setting.variant, seeds)
                nothing = dict.fromkeys(("value", "low", "high", "spread")) | dict.fromkeys(("runs", "n", "most"), 0)
                numbers: dict[str, Any] = nothing | {"unscored": sum(row.unscored for row in rows)}
                numbers = numbers if made is None else asdict(made)
                yield OfSetting(summary.model, *name, *which, **numbers, judges=judges)
