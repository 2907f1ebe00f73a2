"""How far a judge agrees with people: agreement, Cohen's kappa, AUROC and rank correlation, with 95 % intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import cohen_kappa_score, confusion_matrix, roc_auc_score

from tasft.result.statistics import CONFIDENCE, Z, score_interval, wilson

DRAWS = 2_000
DRAWN_AT_ONCE = 2**22  # numbers, so that memory stays bounded


@dataclass(frozen=True)
class Measure:
    """A value and its 95 % interval; all None where the value is undefined, both ends where the interval is."""

    value: float | None
    low: float | None = None
    high: float | None = None


def kappa(people: Sequence[str], judge: Sequence[str], draws: int = DRAWS, seed: int = 0) -> Measure:
    """Cohen's kappa (1960): agreement beyond that of two who label at random with the same frequencies, at most 1.

    Undefined where both have one label throughout; draws in which that happens are left out of the interval, which is
    one of percentiles over bootstrap draws of the answers. All draws of full agreement agree: then it reaches down to
    where as many answers differed as Wilson's interval of 0 in n allows, at these frequencies. For two labels as
    frequent as each other that is the goodness-of-fit interval of Donner and Eliasziw 1992,
    https://doi.org/10.1002/sim.4780111109.
    """
    if len({*people, *judge}) < 2:
        return Measure(None)
    value = cohen_kappa_score(people, judge)
    counts = confusion_matrix(people, judge, labels=sorted({*people, *judge}))
    n, shape = int(counts.sum()), counts.shape
    if np.trace(counts) == n:
        chance = float((counts.sum(1) ** 2).sum()) / n**2
        return Measure(1.0, max(-1.0, 1 - wilson(0, n)[1] / (1 - chance)), 1.0)
    drawn = np.random.default_rng(seed).multinomial(n, counts.ravel() / n, draws).reshape(draws, *shape)
    observed = np.trace(drawn, axis1=1, axis2=2) / n
    by_chance = (drawn.sum(1) * drawn.sum(2)).sum(1) / n**2
    with np.errstate(divide="ignore", invalid="ignore"):
        return Measure(float(value), *_interval((observed - by_chance) / (1 - by_chance)))


def auroc(positive: Sequence[bool], scores: Sequence[float]) -> Measure:
    """The chance that a positive answer scores higher than another one, ties being half of one.

    Its interval is a score interval with Hanley and McNeil's variance (method 5 of Newcombe 2006,
    https://doi.org/10.1002/sim.2324), which has a width at 0 and 1, too. Undefined where all answers are of one kind.
    """
    truth = np.asarray(positive, bool)
    if truth.all() or not truth.any():
        return Measure(None)
    value, pairs = float(roc_auc_score(truth, np.asarray(scores, float))), int(truth.sum() * (~truth).sum())
    more = len(truth) / 2 - 1

    def excess(x: float) -> float:
        spread = x * (1 - x) * (1 + more * ((1 - x) / (2 - x) + x / (1 + x)))
        return (value - x) ** 2 * pairs - Z**2 * spread

    return Measure(value, *score_interval(excess, value, 0.0, 1.0))


def rank_correlation(people: Sequence[float], scores: Sequence[float], draws: int = DRAWS, seed: int = 0) -> Measure:
    """Spearman's rank correlation of people's ratings and a judge's scores.

    Undefined where either is one number throughout; draws in which that happens are left out of the interval, which is
    one of percentiles over bootstrap draws of the answers, and undefined where they all agree: orders that are the same
    throughout do not tell by how much others would not.
    """
    both = np.asarray(people, float), np.asarray(scores, float)
    if len(both[0]) < 2 or any(len(np.unique(each)) == 1 for each in both):
        return Measure(None)

    def of(indices: np.ndarray) -> np.ndarray:
        first, second = (rankdata(each[indices], axis=1) for each in both)
        first, second = first - first.mean(1, keepdims=True), second - second.mean(1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            return (first * second).sum(1) / np.sqrt((first**2).sum(1) * (second**2).sum(1))

    n = len(both[0])
    return Measure(float(of(np.arange(n)[None])[0]), *_resampled(of, n, draws, seed))


def _resampled(
    of: Callable[[np.ndarray], np.ndarray], n: int, draws: int, seed: int
) -> tuple[float | None, float | None]:
    """The interval of a statistic of answers (draws, n), given by their indices."""
    rng = np.random.default_rng(seed)
    step = max(1, DRAWN_AT_ONCE // n)
    sizes = [min(step, draws - start) for start in range(0, draws, step)]
    return _interval(np.concatenate([of(rng.integers(n, size=(size, n))) for size in sizes]))


def _interval(found: np.ndarray) -> tuple[float | None, float | None]:
    finite = found[np.isfinite(found)]
    if not len(finite) or np.ptp(finite) < 1e-12:
        return None, None
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(finite, [tail, 100 - tail])
    return float(low), float(high)
