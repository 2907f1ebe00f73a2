import numpy as np
import pytest
from scipy.stats import norm

from tasft.result.paired import holm, mcnemar, paired_bootstrap, tango


def both(only_first, only_second, alike):
    first = [True] * only_first + [False] * only_second + [True, False] * alike
    second = [False] * only_first + [True] * only_second + [True, False] * alike
    return first, second


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (6, 0, 2 * 1 / 64),  # of 6 coins all on one side
        (5, 1, 2 * (1 + 6) / 64),
        (1, 5, 2 * (1 + 6) / 64),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (3, 3, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_is_a_fair_coin_by_hand(only_first, only_second, p):
    found = mcnemar(*both(only_first, only_second, alike=7))
    assert (found.only_first, found.only_second) == (only_first, only_second)
    assert found.p == pytest.approx(p, abs=1e-12)


def test_the_bootstrap_of_one_run_is_that_of_its_discordant_prompts():
    # 21 of 100 for the first alone, 11 for the second: difference 0.1, variance of a prompt's difference 0.32 - 0.01
    first, second = both(21, 11, alike=34)
    found = paired_bootstrap(np.array([first], float), np.array([second], float), same_seeds=True)
    half = norm.ppf(0.975) * (0.31 / 100) ** 0.5
    assert found.value == pytest.approx(0.1)
    assert (found.low, found.high) == pytest.approx((0.1 - half, 0.1 + half), abs=0.011)
    assert found.p == pytest.approx(2 * norm.sf(0.1 / 0.31**0.5 * 10), abs=0.02)  # 0.072; a grid of 1/100


def test_no_difference_and_a_sure_one():
    a = np.array([[1.0, 0.0, 1.0, 1.0]])
    same = paired_bootstrap(a, a, same_seeds=True)
    assert (same.value, same.low, same.high, same.p) == (0.0, None, None, 1.0)
    sure = paired_bootstrap(np.ones((1, 9)), np.zeros((1, 9)), same_seeds=True, draws=999)
    assert (sure.value, sure.low, sure.high, sure.p) == (1.0, None, None, 2 / 2**9)  # 9 coins on one side
    sure = paired_bootstrap(np.ones((1, 10)), np.zeros((1, 10)), same_seeds=True, draws=999)
    assert sure.p == 2 / 1000
    # sums of scores that differ by their rounding alone are the same
    scores = np.random.default_rng(0).random((2, 30)) * 1e3
    moved = paired_bootstrap(scores + 0.1, scores, same_seeds=True)
    assert (moved.value, moved.low, moved.high) == (pytest.approx(0.1), None, None)


def test_tango_s_interval_by_hand():
    # Tango's score interval of Bentur et al.'s 1 and 7 discordant of 21, as Fagerland, Lydersen and Laake 2014 give it
    assert tango(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert tango(7, 1, 21) == pytest.approx((0.026, 0.517), abs=5e-4)
    # nothing differs: (n x)^2 = z^2 n x (1 - x), so x = z^2 / (n + z^2)
    end = 1.959964**2 / (100 + 1.959964**2)
    assert tango(0, 0, 100) == pytest.approx((-end, end), abs=1e-6)
    # all differ: (n - n x)^2 = z^2 n (1 - x^2), with nothing for the second alone: x = (n - z^2) / (n + z^2)
    low, high = tango(100, 0, 100)
    assert (low, high) == (pytest.approx((100 - 1.959964**2) / (100 + 1.959964**2), abs=1e-6), 1.0)
    with pytest.raises(ValueError, match="not those on which two runs differ"):
        tango(3, 2, 4)


def test_tango_s_interval_of_any_counts():
    for n in (1, 2, 7, 20, 600):
        counts = [0, 1, n // 2, n - 1, n]
        for b, c in {(b, c) for b in counts for c in counts if 0 <= b and 0 <= c and b + c <= n}:
            low, high = tango(b, c, n)
            assert -1 <= low <= (b - c) / n <= high <= 1 and high - low > 1 / (n + 4)
            assert tango(c, b, n) == pytest.approx((-high, -low), abs=1e-9)


def test_tango_s_interval_covers_as_often_as_it_says():
    rng, n, shares = np.random.default_rng(4), 60, (0.02, 0.06, 0.92)  # difference -0.04
    drawn = rng.multinomial(n, shares, 2000)
    ends = {tuple(each): tango(*each[:2], n) for each in drawn.tolist()}
    covered = np.mean([ends[tuple(each)][0] <= -0.04 <= ends[tuple(each)][1] for each in drawn.tolist()])
    assert 0.93 < covered < 0.985


def test_seeds_are_their_own_level():
    # Two seeds of each: all 1 or all 0 on every prompt. Prompts then add nothing, and a draw of two seeds of two has
    # mean 0, 1/2, 1 with 1/4, 1/2, 1/4.
    first, second = np.repeat([[1.0], [0.0]], 50, 1), np.zeros((2, 50))
    found = paired_bootstrap(first, second, same_seeds=True)
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
    assert found.p == pytest.approx(0.5, abs=0.03)
    # seeds that go together leave no difference; each on its own, the difference is anything from -1 to 1
    assert paired_bootstrap(first, first, same_seeds=True).high is None
    apart = paired_bootstrap(first, first, same_seeds=False)
    assert (apart.low, apart.high) == (-1.0, 1.0)


def test_settings_may_have_different_numbers_of_seeds():
    rng = np.random.default_rng(1)
    first, second = rng.random((3, 40)), rng.random((2, 40)) + 1
    found = paired_bootstrap(first, second, same_seeds=False)
    assert found.value == pytest.approx(first.mean() - second.mean())
    assert found.low < found.value < found.high < -0.5


def test_prompts_drawn_by_pattern_are_the_plain_bootstrap():
    rng = np.random.default_rng(2)
    first, second = (rng.random((3, 30)) < 0.6).astype(float), (rng.random((3, 30)) < 0.4).astype(float)
    plain = []
    for _ in range(4000):
        runs, prompts = rng.integers(3, size=3), rng.integers(30, size=30)
        plain.append((first - second)[np.ix_(runs, prompts)].mean())
    found = paired_bootstrap(first, second, same_seeds=True)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(plain, [2.5, 97.5])), abs=0.03)


def test_the_same_arguments_give_the_same_numbers():
    first, second = np.random.default_rng(3).random((2, 2, 20))
    assert paired_bootstrap(first, second, True) == paired_bootstrap(first, second, True)
    with pytest.raises(ValueError, match="not the same prompts"):
        paired_bootstrap(first, second[:, :10], True)


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.06 (0.04 is raised to its smaller ones')
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
