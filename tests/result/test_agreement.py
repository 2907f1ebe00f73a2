import numpy as np
import pytest
from scipy.stats import spearmanr

from tasft.result.agreement import Measure, auroc, kappa, rank_correlation


def test_kappa_by_hand():
    # Cohen's 2 x 2: 20 both yes, 15 both no, 5 and 10 apart. Observed 0.7; by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5
    people = ["yes"] * 25 + ["no"] * 25
    judge = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    found = kappa(people, judge)
    assert found.value == pytest.approx(0.4)
    # large-sample standard error (Fleiss, Cohen and Everitt 1969) 0.128
    assert (found.low, found.high) == pytest.approx((0.4 - 1.96 * 0.128, 0.4 + 1.96 * 0.128), abs=0.03)


def test_kappa_of_three_classes_and_its_ends():
    people = ["a", "a", "b", "b", "c", "c"]
    # observed 4/6; by chance (2*3 + 2*2 + 2*1)/36 = 1/3
    assert kappa(people, ["a", "a", "b", "a", "c", "b"]).value == pytest.approx((4 / 6 - 1 / 3) / (2 / 3))
    assert kappa(people, people).value == 1.0
    assert kappa(["a", "b"], ["b", "a"]).value == -1.0
    assert kappa(["a", "a"], ["a", "a"]).value is None
    assert kappa([], []).value is None


def test_auroc_by_hand():
    # positives 3 and 1, others 2 and 1: of 4 pairs 3 > 2, 3 > 1, 1 = 1 (half), 1 < 2: 2.5 / 4
    found = auroc([True, True, False, False], [3.0, 1.0, 2.0, 1.0])
    assert found.value == 0.625
    assert auroc([True, True], [1.0, 2.0]).value is None
    # one of each in order: (1 - x)^2 = z^2 x (1 - x), so x = 1 / (1 + z^2)
    sure = auroc([True, False], [1.0, 0.0])
    assert (sure.value, sure.low, sure.high) == (1.0, pytest.approx(1 / (1 + 1.959964**2)), 1.0)
    assert auroc([True, False], [0.0, 1.0]).high == pytest.approx(1 - sure.low)
    sure = auroc([True] * 20 + [False] * 20, list(range(40, 0, -1)))
    # 400 (1 - x)^2 = z^2 x (1 - x) (1 + 19 ((1 - x)/(2 - x) + x/(1 + x)))
    x = sure.low
    assert 400 * (1 - x) == pytest.approx(1.959964**2 * x * (1 + 19 * ((1 - x) / (2 - x) + x / (1 + x))), rel=1e-5)


def test_full_agreement_is_not_sure():
    # 0 of n differ: at most z^2 / (n + z^2) by Wilson; by chance half differ where labels are as frequent as each other
    found = kappa(["a", "b"] * 10, ["a", "b"] * 10)
    assert (found.value, found.low, found.high) == (1.0, pytest.approx(1 - 2 * 3.841459 / 23.841459), 1.0)
    # 1 of 10 is b: by chance 0.81 + 0.01 agree
    assert kappa(["a"] * 9 + ["b"], ["a"] * 9 + ["b"]).low == pytest.approx(1 - 3.841459 / 13.841459 / 0.18)
    assert kappa(["a"], ["b"]) == Measure(0.0, None, None)
    assert rank_correlation([1, 2, 3, 4], [5, 6, 7, 8]) == Measure(pytest.approx(1.0), None, None)


def test_rank_correlation_by_hand():
    # ranks 1 2 3 4 and 2 1 4 3: 1 - 6 * 4 / (4 * 15)
    assert rank_correlation([1, 2, 3, 4], [0.2, 0.1, 9.0, 0.3]).value == pytest.approx(0.6)
    assert rank_correlation([1, 1, 1], [1, 2, 3]).value is None
    people, scores = np.random.default_rng(0).integers(5, size=(2, 50))
    assert rank_correlation(people, scores).value == pytest.approx(spearmanr(people, scores).statistic)


def test_drawn_together_is_the_plain_bootstrap():
    rng = np.random.default_rng(1)
    people = rng.integers(4, size=40)
    scores = people + rng.normal(size=40)
    plain = []
    for _ in range(1500):
        drawn = rng.integers(40, size=40)
        plain.append(spearmanr(people[drawn], scores[drawn]).statistic)
    found = rank_correlation(list(people), list(scores))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(plain, [2.5, 97.5])), abs=0.03)
    assert found == rank_correlation(list(people), list(scores))


def test_the_interval_of_auroc_is_about_that_of_resampled_answers():
    rng = np.random.default_rng(1)
    truth = rng.random(200) < 0.5
    scores = rng.random(200) + 0.5 * truth
    plain = []
    for _ in range(1500):
        drawn = rng.integers(200, size=200)
        positive, other = scores[drawn][truth[drawn]], scores[drawn][~truth[drawn]]
        plain.append((positive[:, None] > other).mean() + (positive[:, None] == other).mean() / 2)
    found = auroc(list(truth), list(scores))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(plain, [2.5, 97.5])), abs=0.02)
