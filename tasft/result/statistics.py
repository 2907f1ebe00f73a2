"""Rates and means with their 95 % intervals, of one run and over seeds."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev
from typing import Protocol

from scipy.optimize import brentq
from scipy.stats import binomtest, norm, t

CONFIDENCE = 0.95
Z = float(norm.ppf((1 + CONFIDENCE) / 2))  # 1.96


@cache  # of every rate both ends are asked for, and the test behind it takes milliseconds
def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of successes / n, fractions; ValueError unless 0 <= successes <= n > 0.

    Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953. Unlike the normal interval it has a width at
    0 and n.
    """
    interval = binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    # The ends at 0 and n are exact; rounding leaves about 1e-17 there.
    low = 0.0 if successes == 0 else float(interval.low)
    high = 1.0 if successes == n else float(interval.high)
    return low, high


def score_interval(excess: Callable[[float], float], value: float, least: float, most: float) -> tuple[float, float]:
    """The ends of a 95 % score interval around `value`: where `excess` becomes 0, between `least` and `most`.

    excess(x) is the squared distance of the estimate from x, less Z squared times its variance if x were true: below 0
    near `value`, 0 or more at both bounds. A value at a bound has it as its end.
    """
    tiny = 1e-12  # at the value itself both parts may be 0
    low = least if value <= least else float(brentq(excess, least, value - tiny))
    high = most if value >= most else float(brentq(excess, value + tiny, most))
    return low, high


@dataclass(frozen=True)
class Rate:
    """`successes` of `n` scored answers; `unscored` answers stand in neither."""

    successes: int
    n: int
    unscored: int = 0
    stderr: None = None  # its interval is Wilson's

    def __post_init__(self) -> None:
        if not 0 <= self.successes <= self.n or self.unscored < 0:
            raise ValueError(f"{self.successes} of {self.n} scored, {self.unscored} unscored: not a rate")

    @property
    def value(self) -> float | None:
        """The fraction; None where no answer was scored."""
        return self.successes / self.n if self.n else None

    @property
    def low(self) -> float | None:
        """Lower end of the 95 % Wilson interval; None where no answer was scored."""
        return wilson(self.successes, self.n)[0] if self.n else None

    @property
    def high(self) -> float | None:
        """Upper end of the 95 % Wilson interval; None where no answer was scored."""
        return wilson(self.successes, self.n)[1] if self.n else None


def pooled(rates: Iterable[Rate]) -> Rate:
    """The rate over all answers together: every answer weighs the same, not every benchmark."""
    rates = list(rates)
    return Rate(
        sum(rate.successes for rate in rates),
        sum(rate.n for rate in rates),
        sum(rate.unscored for rate in rates),
    )


@dataclass(frozen=True)
class Mean:
    """The mean of `n` scores, its standard error and 95 % t interval; `unscored` answers stand in none of them."""

    n: int
    unscored: int
    value: float | None  # None where no answer was scored
    stderr: float | None  # s / sqrt(n), with s over n - 1; None for fewer than two
    low: float | None  # None as well where all scores are equal: they say nothing of how far others would lie
    high: float | None


def mean_of(scores: Sequence[float], unscored: int = 0) -> Mean:
    """The mean of `scores` with its interval: mean ± t(0.975, n - 1) standard errors (Student 1908).

    Scores have any unit and any shape, so the interval is not kept within bounds that a unit may have.
    """
    n = len(scores)
    if n < 2:
        return Mean(n, unscored, float(scores[0]) if n else None, None, None, None)
    value, stderr = fmean(scores), stdev(scores) / n**0.5
    if stderr == 0:
        return Mean(n, unscored, value, 0.0, None, None)
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * stderr
    return Mean(n, unscored, value, stderr, value - half, value + half)


class Measured(Protocol):
    """What was measured of one run: a Rate, a Mean, or a line of the table that holds one."""

    @property
    def value(self) -> float | None: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...
    @property
    def n(self) -> int: ...
    @property
    def unscored(self) -> int: ...
    @property
    def stderr(self) -> float | None: ...


@dataclass(frozen=True)
class Estimate:
    """What was measured of one run, or of several that differ in their seed alone.

    `value` is the mean over the runs, `low` and `high` its 95 % interval, `spread` the sample standard deviation over
    several runs. A run has `n` to `most` scored answers; `unscored` ones are of all runs together.
    """

    value: float
    low: float | None
    high: float | None
    spread: float | None
    runs: int
    n: int
    most: int
    unscored: int


def estimate(measured: Iterable[Measured]) -> Estimate | None:
    """One run as it is, or several with a 95 % interval over prompts and seeds; None where none has a value.

    Seeds are a level of variance of their own, and share their prompts. So the squared half-width has two parts: that
    of one run's interval, which more seeds do not narrow, and t(0.975, k - 1)^2 s^2 / k of the k seeds, whose standard
    deviation s they tell themselves: two seeds tell little, and the interval says so. Of rates each side is added up by
    itself, Wilson's being longer towards 1/2, and ends at 0 and 1; where seeds agree, it is that of one run. In
    simulations with two to ten seeds, 20 to 200 prompts that differ by one logit, and rates from 3 to 50 %, it covers
    97 % or more where seeds differ by up to half a logit: it is wider than it need be, as the answers' own chance
    stands in both parts. Where they differ by one logit, it covers 93.8 % or more.
    """
    every = list(measured)
    scored = [each for each in every if each.value is not None]
    values = [each.value for each in scored if each.value is not None]
    if not values:
        return None
    value, spread = mean_and_spread(values)
    counts = [each.n for each in scored]
    low, high = (scored[0].low, scored[0].high) if spread is None else _over_seeds(scored, value, spread, min(counts))
    unscored = sum(each.unscored for each in every)
    return Estimate(value, low, high, spread, len(values), min(counts), max(counts), unscored)


def _over_seeds(
    scored: Sequence[Measured], value: float, spread: float, n: int
) -> tuple[float, float] | tuple[None, None]:
    k = len(scored)
    seeds = float(t.ppf((1 + CONFIDENCE) / 2, k - 1)) ** 2 * spread**2 / k
    if all(each.stderr is None and each.low is not None for each in scored):  # rates
        excess = Z**2 / n
        middle = (value + excess / 2) / (1 + excess)  # Wilson's interval of a run with this value: middle -+ half
        half = (excess * value * (1 - value) + excess**2 / 4) ** 0.5 / (1 + excess)
        below, above = value - (middle - half), middle + half - value
        return max(0.0, value - (below**2 + seeds) ** 0.5), min(1.0, value + (above**2 + seeds) ** 0.5)
    ends = [(each.high - each.low) / 2 for each in scored if each.high is not None and each.low is not None]
    half = (seeds + sum(end**2 for end in ends) / k) ** 0.5
    return (value - half, value + half) if half else (None, None)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (over k - 1) of one or more values; None as the spread of one."""
    return fmean(values), stdev(values) if len(values) > 1 else None
