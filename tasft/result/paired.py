"""Two settings on the same prompts: McNemar's test and Tango's interval, or a bootstrap over prompts and seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from tasft.result.statistics import CONFIDENCE, Z, score_interval

DRAWS = 10_000


@dataclass(frozen=True)
class Discordant:
    """Prompts on which two runs differ: what holds of one answer alone; `p` of McNemar's exact test, two-sided."""

    only_first: int
    only_second: int
    p: float


@dataclass(frozen=True)
class Difference:
    """first - second, its 95 % interval, None where the draws tell of none, and the two-sided p of no difference."""

    value: float
    low: float | None
    high: float | None
    p: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> Discordant:
    """Whether two runs differ in a yes or no on the same prompts, by those on which they do.

    McNemar 1947 in its exact form: without a difference, each discordant prompt falls to either side like a fair coin.
    Without any, p is 1.
    """
    pairs = list(zip(first, second, strict=True))
    only_first = sum(a and not b for a, b in pairs)
    only_second = sum(b and not a for a, b in pairs)
    n = only_first + only_second
    return Discordant(only_first, only_second, float(binomtest(only_first, n).pvalue) if n else 1.0)


def tango(only_first: int, only_second: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of the difference of two rates on the same n prompts, from those on which they differ.

    Tango 1998, https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B. It has a width where
    nothing differs, too: then z^2 / (n + z^2) to either side, as Wilson's interval of 0 of n has.
    """
    b, c = only_first, only_second
    if not 0 <= b + c <= n or min(b, c) < 0 or n == 0:
        raise ValueError(f"{b} and {c} of {n} prompts: not those on which two runs differ")

    def excess(x: float) -> float:
        # the likeliest share of the second alone, if the difference were x: a root of 2n q^2 + linear q + constant
        linear, constant = (2 * n - b + c) * x - b - c, -c * x * (1 - x)
        share = (max(0.0, linear**2 - 8 * n * constant) ** 0.5 - linear) / (4 * n)  # a double root may round below 0
        return (b - c - n * x) ** 2 - Z**2 * n * (2 * share + x * (1 - x))

    return score_interval(excess, (b - c) / n, -1.0, 1.0)


def paired_bootstrap(
    first: np.ndarray, second: np.ndarray, same_seeds: bool, draws: int = DRAWS, seed: int = 0
) -> Difference:
    """The difference of two settings' means over runs and prompts, with a percentile interval from resampling both.

    first, second: (runs, prompts), one column for each prompt in both. A draw takes prompts with replacement, the same
    for both settings, and runs with replacement: the same ones for both where `same_seeds` (row i of both has one seed,
    and so the same rows in the same order), else each setting its own. A single run is always taken: then the interval
    is over prompts alone. With two or three seeds it is too narrow, by about sqrt((k - 1) / k) of their spread.
    Where every draw gives the same number, there is no interval: prompts and seeds that all agree do not tell by how
    much others would not. p is twice the smaller share of draws at or beyond 0, the difference itself counted as one
    draw (Davison and Hinkley 1997, 4.4); it is never below 2 / (draws + 1), nor below 2 / 2^n: of n prompts that all
    point one way, a test by their signs says no more. The same arguments give the same numbers.
    """
    if first.shape[1] != second.shape[1] or first.shape[1] == 0 or (same_seeds and first.shape != second.shape):
        raise ValueError(f"{first.shape} and {second.shape}: not the same prompts, or not the same seeds")
    rng = np.random.default_rng(seed)
    # Prompts on which all runs say the same are drawn together: a handful of patterns, where answers are yes or no.
    patterns, counts = np.unique(np.concatenate([first, second]), axis=1, return_counts=True)
    k, (runs_first, n), runs_second = len(first), first.shape, len(second)
    runs = rng.multinomial(runs_first, np.full(runs_first, 1 / runs_first), draws) / runs_first  # (draws, runs)
    others = runs if same_seeds else rng.multinomial(runs_second, np.full(runs_second, 1 / runs_second), draws)
    others = others if same_seeds else others / runs_second
    found = np.empty(draws)
    step = max(1, 2**22 // patterns.shape[1])
    for start in range(0, draws, step):
        part = slice(start, min(start + step, draws))
        prompts = rng.multinomial(n, counts / n, part.stop - start)  # (part, patterns)
        of_each = runs[part] @ patterns[:k] - others[part] @ patterns[k:]
        found[part] = (of_each * prompts).sum(1) / n
    tail = 100 * (1 - CONFIDENCE) / 2
    tiny = 1e-12 * max(1.0, float(np.abs(patterns).max()))  # what sums that are the same may differ by
    beyond = min((found <= tiny).sum(), (found >= -tiny).sum())
    p = min(1.0, max(2 * (1 + int(beyond)) / (draws + 1), 2.0 ** (1 - n)))
    value = float(first.mean() - second.mean())
    if np.ptp(found) <= tiny:
        return Difference(value, None, None, p)
    low, high = np.percentile(found, [tail, 100 - tail])
    return Difference(value, float(low), float(high), p)


def holm(ps: Sequence[float]) -> list[float]:
    """p-values corrected for having been looked at together (Holm 1979), in their order.

    The i-th smallest of m, from 0, is multiplied by m - i; none is below a smaller one's, none above 1.
    """
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = largest
    return corrected
