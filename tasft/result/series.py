"""A run's rates under the names that W&B has them by: over steps, and at the end."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from tasft.result.outcome import JOINT
from tasft.result.statistics import Rate, pooled
from tasft.result.table import POOLED, Measurement, last_steps

# Joint rates over all benchmarks of a kind together: name -> (kind of prompts, outcome)
HEADLINES = {"harm": ("toxic", "harmful"), "over_refusal": ("seeming", "refusal"), "helpful": ("safe", "helpful")}


def curves(rows: Iterable[Measurement]) -> dict[int, dict[str, float]]:
    """Step -> `eval/<benchmark>/<judge>/<metric>`, `eval/harm`, ... -> value; what has none is left out."""
    found: dict[int, dict[str, float]] = defaultdict(dict)
    for name, row in _named(list(rows), pooled=False):
        if row.value is not None:
            found[row.step][f"eval/{name}"] = row.value
    return dict(found)


def final(rows: Iterable[Measurement]) -> dict[str, float | None]:
    """The last step's `final/<benchmark>/<judge>/<metric>`, `final/harm`, ..., each with /low, /high, /n, /unscored."""
    found: dict[str, float | None] = {}
    for name, row in _named(last_steps(rows), pooled=True):
        found[f"final/{name}"] = row.value
        beside = {"low": row.low, "high": row.high, "n": row.n, "unscored": row.unscored}
        found |= {f"final/{name}/{key}": value for key, value in beside.items()}
    return found


def _named(rows: list[Measurement], pooled: bool) -> list[tuple[str, Measurement]]:
    shown = [row for row in rows if pooled or row.benchmark != POOLED]
    named = [(f"{row.benchmark}/{row.judge}/{row.metric}".replace(" ", "_"), row) for row in shown]
    return named + [(name, row) for name, of in HEADLINES.items() for row in _headline(rows, *of)]


def _headline(rows: list[Measurement], kind: str, metric: str) -> list[Measurement]:
    """One row for each step at which all the benchmarks of the kind have the joint rate: over fewer it is another.

    Harm is the table's pooled rate: which toxic benchmarks are in it is said there.
    """
    if kind == "toxic":
        return [row for row in rows if (row.judge, row.benchmark, row.metric) == (JOINT, POOLED, metric)]
    by_step: dict[int, dict[str, Measurement]] = defaultdict(dict)
    for row in rows:
        if (row.judge, row.kind, row.metric) == (JOINT, kind, metric):
            by_step[row.step][row.benchmark] = row
    everywhere = {benchmark for of_step in by_step.values() for benchmark in of_step}
    made = []
    for of_step in by_step.values():
        if set(of_step) == everywhere:
            each = [Rate(round((row.value or 0) * row.n), row.n, row.unscored) for row in of_step.values()]
            rate = pooled(each)
            one = next(iter(of_step.values()))
            of_rate = {"value": rate.value, "low": rate.low, "high": rate.high, "n": rate.n, "unscored": rate.unscored}
            made.append(replace(one, benchmark=POOLED, **of_rate))  # type: ignore[arg-type]
    return made
