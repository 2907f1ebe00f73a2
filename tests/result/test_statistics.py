import numpy as np
import pytest

from tasft.result.statistics import Estimate, Mean, Rate, estimate, mean_and_spread, mean_of, pooled, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # z = 1.959964, z^2 = 3.841459. 0 of 10: low 0, high z^2 / (n + z^2) = 3.841459 / 13.841459
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
        # 10 of 20: 1/2 -+ z sqrt(20/4 + z^2/4) / (20 + z^2) = 1/2 -+ 1.959964 * 2.441 / 23.841459
        (10, 20, 0.299298, 0.700702),
        # 1 of 4: centre (1 + 1.920729) / 7.841459 = 0.372473; half 1.959964 * sqrt(3/4 + 0.960365) / 7.841459
        (1, 4, 0.045587, 0.699358),
    ],
)
def test_wilson_by_hand(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=2e-6)


def test_wilson_twin_in_plain_python():
    z = 1.959963984540054
    for n in (1, 7, 200):
        for k in range(n + 1):
            centre, half = (k + z * z / 2), z * (k * (n - k) / n + z * z / 4) ** 0.5
            twin = ((centre - half) / (n + z * z), (centre + half) / (n + z * z))
            assert wilson(k, n) == pytest.approx(twin, abs=1e-12)


def test_unscored_answers_are_in_no_rate():
    rate = Rate(3, 10, unscored=5)
    assert rate.value == 0.3
    assert (rate.low, rate.high) == wilson(3, 10)


def test_nothing_scored_is_no_number():
    rate = Rate(0, 0, unscored=4)
    assert (rate.value, rate.low, rate.high) == (None, None, None)


@pytest.mark.parametrize("wrong", [(3, 2, 0), (-1, 2, 0), (1, 2, -1)])
def test_impossible_counts_are_refused(wrong):
    with pytest.raises(ValueError, match="not a rate"):
        Rate(*wrong)


def test_pooling_weighs_answers_not_benchmarks():
    assert pooled([Rate(1, 10, 1), Rate(90, 90, 2)]) == Rate(91, 100, 3)


def test_mean_and_sample_spread():
    assert mean_and_spread([1.0, 2.0, 6.0]) == (3.0, pytest.approx(7**0.5))  # (4 + 1 + 9) / 2
    assert mean_and_spread([0.4]) == (0.4, None)


def test_a_mean_with_its_t_interval_by_hand():
    # 1, 2, 6: s = sqrt(7), standard error sqrt(7 / 3) = 1.527525, t(0.975, 2) = 4.302653
    found = mean_of([1.0, 2.0, 6.0], unscored=4)
    assert (found.n, found.unscored, found.value, found.stderr) == (3, 4, 3.0, pytest.approx(1.527525, abs=1e-6))
    assert (found.low, found.high) == pytest.approx((3 - 6.572411, 3 + 6.572411), abs=1e-5)
    assert mean_of([2.5, 2.5, 2.5]) == Mean(3, 0, 2.5, 0.0, None, None)  # which does not say that all others are 2.5
    assert mean_of([2.5]) == Mean(1, 0, 2.5, None, None, None)
    assert mean_of([], unscored=2) == Mean(0, 2, None, None, None, None)


def test_several_seeds_have_an_interval_over_prompts_and_seeds_by_hand():
    made = estimate([Rate(10, 50, 1), Rate(20, 50), Rate(0, 0, 3)])  # the third has no value
    assert made == Estimate(pytest.approx(0.3), made.low, made.high, pytest.approx(0.02**0.5), 2, 50, 50, 4)
    assert (made.low, made.high) == (0.0, 1.0)  # seeds t(0.975, 1)^2 * 0.02 / 2 = 12.7062^2 * 0.01 = 1.27^2
    # 0.22, Wilson's 0.239977 -+ 0.112438: 0.092461 below, 0.132415 above; seeds 4.302653^2 * 0.0004 / 3 = 0.002468
    near = estimate([Rate(10, 50), Rate(11, 50), Rate(12, 50)])
    ends = (0.22 - (0.092461**2 + 0.002468) ** 0.5, 0.22 + (0.132415**2 + 0.002468) ** 0.5)
    assert (near.low, near.high) == pytest.approx(ends, abs=2e-6)
    # 0.005, Wilson's above it 0.041101; seeds 12.7062^2 * 0.00005 / 2 = 0.004036; 0.041101^2 + 0.004036 = 0.075667^2
    rare = estimate([Rate(0, 100), Rate(1, 100)])
    assert (rare.low, rare.high) == (0.0, pytest.approx(0.080667, abs=2e-6))
    one = estimate([Rate(10, 50, 1)])
    assert (one.low, one.high, one.spread, one.unscored) == (*wilson(10, 50), None, 1)
    agreed = estimate([Rate(0, 50), Rate(0, 50), Rate(0, 50)])
    assert (agreed.low, agreed.high) == pytest.approx(wilson(0, 50))  # seeds that agree leave the prompts' interval
    assert estimate([Rate(0, 0, 3)]) is None


def test_mean_scores_of_several_seeds_have_a_t_interval_over_both():
    made = estimate([mean_of([1.0, 2.0, 6.0]), mean_of([3.0, 4.0, 8.0])])
    # 3 and 5: prompts 6.572411^2, seeds t(0.975, 1)^2 * 2 / 2 = 12.7062^2; the root of their sum is 14.305
    assert (made.value, made.low, made.high) == pytest.approx((4.0, 4 - 14.3053, 4 + 14.3053), abs=1e-3)
    equal = estimate([mean_of([2.0, 2.0]), mean_of([2.0, 2.0])])
    assert (equal.value, equal.low, equal.spread) == (2.0, None, 0.0)


@pytest.mark.parametrize(("seeds", "differ", "base"), [(2, 0.5, -1), (3, 0.5, -4), (3, 0.0, 0), (5, 0.5, -2)])
def test_the_interval_of_several_seeds_covers_the_true_rate(seeds, differ, base):
    rng = np.random.default_rng(0)

    def rate_of(logit):
        return 1 / (1 + np.exp(-logit))

    def by_prompt(count):  # prompts differ by one logit, seeds by `differ`
        return rate_of(rng.normal(size=(count, 1, 60)) + differ * rng.normal(size=(count, seeds, 1)) + base)

    truth = by_prompt(4000).mean()
    harmful = (rng.random((600, seeds, 60)) < by_prompt(600)).sum(2)
    made = [estimate([Rate(int(count), 60) for count in of_setting]) for of_setting in harmful]
    assert np.mean([each.low <= truth <= each.high for each in made]) >= 0.96
