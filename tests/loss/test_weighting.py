"""Weights of a step's examples and the chance of a toxic group, worked by hand."""

from math import comb

import pytest

from tasft.loss.weighting import example_weights, toxic_group_probability

# Table 4 of the paper, 20,000 safe examples, groups of 3.
LLAMA7B_EMD = {1000: 0.83, 500: 1.70, 300: 4.00, 100: 9.00}


def test_probability_by_hand():
    # Of 2 safe and 1 toxic, a pair is safe in 1 of 3 cases.
    assert toxic_group_probability(safe=2, toxic=1, group=2) == pytest.approx(2 / 3)
    assert toxic_group_probability(safe=20_000, toxic=300, group=3) == pytest.approx(
        1 - (20_000 * 19_999 * 19_998) / (20_300 * 20_299 * 20_298), rel=1e-12
    )
    assert toxic_group_probability(safe=20_000, toxic=300, group=3) == pytest.approx(0.043685, abs=5e-7)
    assert toxic_group_probability(safe=20_000, toxic=300, group=96) == pytest.approx(0.761, abs=5e-4)


def test_probability_at_its_ends():
    assert toxic_group_probability(safe=5, toxic=0, group=3) == 0.0
    assert toxic_group_probability(safe=0, toxic=0, group=3) == 0.0
    assert toxic_group_probability(safe=5, toxic=1, group=6) == 1.0
    assert toxic_group_probability(safe=5, toxic=1, group=600) == 1.0
    assert toxic_group_probability(safe=0, toxic=4, group=1) == 1.0
    # Far below the rounding of 1 - P, where P is group * toxic / (safe + toxic).
    assert toxic_group_probability(safe=10**18 - 1, toxic=1, group=1) == pytest.approx(1e-18, rel=1e-12)


def test_probability_of_the_whole_data_as_groups():
    # The sum over all counts of toxic examples in a group is 1: P is all but the first.
    some = sum(comb(7, 4 - t) * comb(3, t) for t in (1, 2, 3))
    assert toxic_group_probability(safe=7, toxic=3, group=4) == pytest.approx(some / comb(10, 4))


def test_table_4_is_nearly_one_share():
    shares = {toxic: weight * toxic_group_probability(20_000, toxic, 3) for toxic, weight in LLAMA7B_EMD.items()}
    assert {toxic: round(share, 3) for toxic, share in shares.items()} == {
        1000: 0.113,
        500: 0.121,
        300: 0.175,
        100: 0.134,
    }


def test_weights_by_hand():
    # G = 3 groups: safe 10 and 30 tokens with one toxic; two toxic with one safe; a short group of one safe.
    weights = example_weights(
        lengths=[10, 5, 30, 7, 9, 4, 8],
        toxic=[False, True, False, True, True, False, False],
        group=3,
        weight=6.0,
    )
    assert weights == pytest.approx([10 / 120, 2.0, 30 / 120, 1.0, 1.0, 1 / 3, 1 / 3])


def test_weights_by_hand_of_an_example_mean():
    weights = example_weights(
        lengths=[10, 5, 30, 7, 9, 4, 8],
        toxic=[False, True, False, True, True, False, False],
        group=3,
        weight=6.0,
        safe_reduction="example_mean",
    )
    assert weights == pytest.approx([1 / 6, 2.0, 1 / 6, 1.0, 1.0, 1 / 3, 1 / 3])


def test_examples_without_tokens_weigh_nothing_and_do_not_count():
    # The first group has nothing to learn from but still is one of the G = 2; in the second, each kind has one.
    lengths = [0, 0, 0, 0, 3, 0, 5]
    toxic = [False, False, True, False, False, True, True]
    for reduction in ("token_mean", "example_mean"):
        weights = example_weights(lengths[:3] + lengths[4:], toxic[:3] + toxic[4:], 3, 1.0, reduction)
        assert weights == [0, 0, 0, 0.5, 0, 0.5]


@pytest.mark.parametrize("reduction", ["token_mean", "example_mean"])
def test_weights_sum_to_the_share_of_groups_that_hold_each_kind(reduction):
    toxic = [i % 7 == 0 for i in range(96)]
    weights = example_weights(list(range(1, 97)), toxic, 3, 0.5, reduction)
    safe_sum = sum(w for w, t in zip(weights, toxic, strict=True) if not t)
    toxic_sum = sum(w for w, t in zip(weights, toxic, strict=True) if t)
    assert safe_sum == pytest.approx(1.0)
    assert toxic_sum == pytest.approx(0.5 * 14 / 32)  # 14 toxic examples, no two in one of the 32 groups


def test_one_group_is_equation_6_over_the_batch():
    weights = example_weights([1, 3, 2], [False, False, True], group=96, weight=2.0)
    assert weights == pytest.approx([0.25, 0.75, 2.0])


def test_an_empty_step_has_no_weights():
    assert example_weights([], [], group=3, weight=1.0) == []
