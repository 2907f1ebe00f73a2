import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm, ortho_group

from tasft.errors import UserError
from tasft.filter.saft import best_threshold, chosen_on, detection, highest, subspace, unsupervised

SVDS = ("randomized", "full")


def planted(rows=400, share=0.1, width=20, distance=8.0, along=0.0, across=0.2, seed=0):
    """Hidden states whose harmful rows lie `distance` off along one direction; noise along and across it."""
    rng = np.random.default_rng(seed)
    direction = ortho_group.rvs(width, random_state=seed)[0]
    harmful = np.arange(rows) < round(share * rows)
    noise = across * rng.standard_normal((rows, width))
    noise -= np.outer(noise @ direction, direction)
    place = distance * harmful + along * rng.standard_normal(rows)
    return noise + np.outer(place, direction) + 3.0, harmful, direction


@pytest.mark.parametrize("svd", SVDS)
def test_scores_by_hand(svd):
    hidden = np.array([[3.0, 0], [-3, 0], [0, 1], [0, -1]]) + 5
    found = subspace(hidden, 2, svd)
    assert found.mean == pytest.approx([5, 5])
    assert np.abs(found.directions) == pytest.approx(np.eye(2))
    assert found.scores(hidden, 1) == pytest.approx([9, 9, 0, 0])
    assert found.scores(hidden, 2) == pytest.approx([4.5, 4.5, 0.5, 0.5])


@pytest.mark.parametrize("svd", SVDS)
@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.3])
def test_a_planted_direction_is_found_without_noise_along_it(svd, share):
    hidden, harmful, direction = planted(share=share)
    detector = unsupervised(hidden, 0, 1, svd)
    assert abs(detector.subspace.directions[0] @ direction) > 0.999
    scores = detector.scores(hidden)
    found = detection(scores, highest(scores, share), harmful)
    assert (found.auroc, found.precision, found.recall, found.f1) == (1, 1, 1, 1)


def known_auroc(distance, share):
    """What the module's docstring says, for a distance in standard deviations."""
    d = distance / math.sqrt(2)
    near, far = norm.cdf(d), norm.cdf((1 - 2 * share) * d)
    return near * far + (1 - near) * (1 - far)


@pytest.mark.parametrize(("distance", "share"), [(0.0, 0.1), (1.0, 0.05), (2.0, 0.2), (3.0, 0.3), (2.5, 0.5)])
def test_the_known_value_is_the_integral(distance, share):
    centre = share * distance  # the mean of the mixture; safe rows lie around 0

    def higher(y):  # the chance that a safe row scores lower than a harmful one at y, times its density
        off = abs(y - centre)
        return (norm.cdf(centre + off) - norm.cdf(centre - off)) * norm.pdf(y - distance)

    assert known_auroc(distance, share) == pytest.approx(quad(higher, -30, 30, points=[centre], limit=200)[0], abs=1e-9)


@pytest.mark.parametrize(("distance", "share"), [(1.5, 0.05), (2.0, 0.1), (2.0, 0.2), (3.0, 0.3)])
def test_with_gaussian_noise_the_filter_gives_the_known_value(distance, share):
    rows = 40_000
    hidden, harmful, _ = planted(rows, share, distance=distance, along=1.0, across=0.1)
    found = detection(unsupervised(hidden, 0).scores(hidden), harmful, harmful)
    error = 1 / math.sqrt(4 * rows * min(share, 1 - share))  # no AUROC has a larger standard error
    assert abs(found.auroc - known_auroc(distance, share)) < 3 * error < 0.04


def test_agrees_with_plain_loops_in_float64():
    hidden, _, _ = planted(rows=60, width=7, along=1.0, across=0.7)
    rows, width = hidden.shape
    mean = [sum(hidden[i][d] for i in range(rows)) / rows for d in range(width)]
    covariance = np.zeros((width, width))
    for i in range(rows):
        for a in range(width):
            for b in range(width):
                covariance[a, b] += (hidden[i][a] - mean[a]) * (hidden[i][b] - mean[b])
    directions = np.linalg.eigh(covariance)[1].T[::-1]
    for k in (1, 3, 7):
        twin = []
        for i in range(rows):
            squares = [sum((hidden[i][d] - mean[d]) * directions[j][d] for d in range(width)) ** 2 for j in range(k)]
            twin.append(sum(squares) / k)
        for svd in SVDS:
            assert subspace(hidden, k, svd).scores(hidden, k) == pytest.approx(twin, rel=1e-9)


def test_randomized_is_full_to_tolerance_and_repeats():
    hidden, _, _ = planted(rows=300, width=64, along=2.0)
    hidden = hidden * np.geomspace(5, 0.1, 64) @ ortho_group.rvs(64, random_state=1)
    for k in (1, 4, 10):
        full, fast = (subspace(hidden, k, svd).scores(hidden, k) for svd in ("full", "randomized"))
        assert fast == pytest.approx(full, rel=1e-3, abs=1e-3 * full.mean())
    assert (subspace(hidden, 4).scores(hidden, 4) == subspace(hidden, 4).scores(hidden, 4)).all()


def test_rotation_shift_and_order_change_no_score():
    hidden, _, _ = planted(rows=80, width=9, along=1.0, across=0.6)
    scores = unsupervised(hidden, 0, 3).scores(hidden)
    rotated = hidden @ ortho_group.rvs(9, random_state=2)
    assert unsupervised(rotated, 0, 3).scores(rotated) == pytest.approx(scores, rel=1e-9)
    shifted = hidden + np.arange(9) * 10
    assert unsupervised(shifted, 0, 3).scores(shifted) == pytest.approx(scores, rel=1e-9)
    order = np.random.default_rng(3).permutation(80)
    assert unsupervised(hidden[order], 0, 3).scores(hidden[order]) == pytest.approx(scores[order], rel=1e-9)


@pytest.mark.parametrize("svd", SVDS)
def test_a_labelled_set_chooses_the_layer_that_knows(svd):
    telling, harmful, _ = planted(along=0.5, seed=1)
    noise = np.random.default_rng(5).standard_normal(telling.shape)
    known = [*range(5), *range(200, 205)]  # 5 harmful rows and 5 safe ones
    states = {0: noise, 4: telling, 7: noise[::-1].copy()}
    labelled = {layer: hidden[known] for layer, hidden in states.items()}
    found = chosen_on(states, labelled, harmful[known], svd=svd)
    assert (found.layer, found.k, found.sign, found.auroc) == (4, 1, 1, 1.0)
    scores = found.scores(telling)
    assert detection(scores, scores >= found.threshold, harmful).f1 == 1


def test_harmful_rows_near_the_mean_score_low_and_only_labels_tell():
    hidden, _, _ = planted(rows=400, share=0.0, along=3.0)
    harmful = np.arange(400) < 40
    hidden[harmful] = 3.0 + 0.1 * np.random.default_rng(0).standard_normal((40, 20))  # where the middle is
    blind = unsupervised(hidden, 2).scores(hidden)
    assert detection(blind, highest(blind, 0.1), harmful).auroc < 0.1
    known = [*range(10), *range(300, 310)]
    found = chosen_on({2: hidden}, {2: hidden[known]}, harmful[known], k=1)
    assert found.sign == -1
    assert detection(found.scores(hidden), harmful, harmful).auroc > 0.9
    assert found.scores(hidden) == pytest.approx(-blind)


def test_of_equals_the_fewest_directions_of_the_lowest_layer():
    hidden, harmful, _ = planted(along=0.1)
    known = [*range(5), *range(200, 205)]
    states = {layer: hidden for layer in (5, 3, 9)}
    found = chosen_on(states, {layer: hidden[known] for layer in states}, harmful[known])
    assert (found.k, found.layer) == (1, 3)


def test_threshold_by_hand():
    harmful = np.array([False, False, True, False, True, True])
    scores = np.array([1.0, 2, 3, 4, 5, 6])
    # from 3 on: precision 3/4, recall 1, F1 6/7; from 5 on: 1, 2/3, F1 4/5; halfway between 2 and 3
    assert best_threshold(scores, harmful) == 2.5
    assert best_threshold(scores, np.array([False, False, False, False, True, True])) == 4.5
    # 6 alone and everything have F1 2/3 and 2/3: the highest
    assert best_threshold(np.array([1.0, 2, 3, 6]), np.array([True, False, False, True])) == 4.5
    assert best_threshold(np.array([1.0, 1, 1]), np.array([True, False, True])) == 1.0


def test_exactly_the_asked_share_is_flagged():
    rng = np.random.default_rng(0)
    for rows in (7, 10, 999, 1000):
        for quantile in (0.001, 0.05, 0.3, 0.999):
            for scores in (rng.standard_normal(rows), np.zeros(rows)):
                flagged = highest(scores, quantile)
                assert flagged.sum() == round(quantile * rows)
                assert not flagged.any() or flagged.all() or scores[flagged].min() >= scores[~flagged].max()
    assert highest(np.array([1.0, 3, 2, 3]), 0.25).tolist() == [False, True, False, False]


def test_detection_by_hand():
    found = detection(
        np.array([4.0, 3, 2, 1]), np.array([True, True, True, False]), np.array([True, False, True, False])
    )
    assert (found.auroc, found.precision, found.recall, found.f1) == pytest.approx((3 / 4, 2 / 3, 1, 4 / 5))
    nothing = detection(np.array([2.0, 1]), np.array([False, False]), np.array([True, False]))
    assert math.isnan(nothing.precision)
    assert nothing.recall == 0


@pytest.mark.parametrize("svd", SVDS)
def test_more_directions_than_there_are(svd):
    line = np.outer(np.arange(6.0), [1, 2, 3]).astype(np.float32)
    assert len(subspace(line, 3, svd).directions) == 1
    with pytest.raises(UserError, match=r"saft\.k=2, but no more than 1 directions tell these rows apart"):
        unsupervised(line, 0, 2, svd)
    same = np.tile(np.array([0.1, 0.2, 0.3], dtype=np.float32), (6, 1))
    with pytest.raises(UserError, match="the hidden states of all rows are the same there"):
        unsupervised(same, 0, 1, svd)
    with pytest.raises(UserError, match="are the same there"):
        chosen_on({0: same}, {0: same[:2]}, [True, False], svd=svd)
    found = chosen_on({0: same, 1: line}, {0: same[:2], 1: line[[3, 5]]}, [False, True], svd=svd)
    assert (found.layer, found.k) == (1, 1)
