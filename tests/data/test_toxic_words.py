"""Toxic words: z-scores by hand and against a twin in NumPy, and which words a small corpus gives."""

import math

import numpy as np
import pytest

from tasft.data.toxic_words import ToxicWord, has_word, lemmas, log_odds, toxic_words
from tasft.errors import UserError


def test_z_scores_by_hand():
    scores = log_odds({"steal": 3, "how": 5}, {"how": 16, "cook": 16})
    # n = 8 and 32, so that the prior weighs 16: steal has 16 * 3 / 40 = 1.2 of it, how 16 * 21 / 40 = 8.4
    steal = (math.log(4.2 / 19.8) - math.log(1.2 / 46.8)) / math.sqrt(1 / 4.2 + 1 / 1.2)
    assert scores["steal"] == pytest.approx(steal)
    assert steal == pytest.approx(2.0413, abs=2e-4)
    assert scores["how"] == pytest.approx(0.5913, abs=2e-4)
    assert scores.keys() == {"steal", "how"}


def test_z_scores_are_those_of_the_papers_equations():
    rng = np.random.default_rng(0)
    y_i, y_j = rng.integers(1, 40, 50), rng.integers(0, 400, 50)
    n_i, n_j = y_i.sum(), y_j.sum()
    a_0 = np.sqrt(n_i * n_j)
    a = a_0 * (y_i + y_j) / (n_i + n_j)
    omega_i, omega_j = (y_i + a) / (n_i + a_0 - y_i - a), (y_j + a) / (n_j + a_0 - y_j - a)
    twin = (np.log(omega_i) - np.log(omega_j)) / np.sqrt(1 / (y_i + a) + 1 / (y_j + a))
    scores = log_odds(dict(enumerate(y_i.tolist())), dict(enumerate(y_j.tolist())))
    np.testing.assert_allclose([scores[w] for w in range(50)], twin, rtol=1e-12)


def test_a_word_as_frequent_in_both_says_nothing_and_more_of_it_says_more():
    assert log_odds({"a": 10, "b": 5}, {"a": 20, "b": 10})["a"] == pytest.approx(0, abs=1e-12)
    assert log_odds({"only": 3}, {}) == {"only": 0.0}
    rising = [log_odds({"steal": n, "other": 50}, {"other": 500})["steal"] for n in (1, 2, 4, 8)]
    assert rising == sorted(rising)


def test_lemmas():
    assert lemmas("He STOLE Sam's bikes, don't he?") == {"he", "steal", "sam", "bike", "do"}
    assert lemmas("killing, killed; kills") == {"kill"}
    assert lemmas("4 + 4 = ?") == set()
    word = ToxicWord("steal", "steal", 2.0, 1, 0)
    assert has_word("A stolen base?", word)
    assert not has_word("Stealth is a film.", word)


SAFE = [f"How do I cook {dish}? Heat the {dish}." for dish in ("rice", "fish", "soup", "beans") * 10]


def words(toxic, safe=SAFE, z=1.645, common=0.01):
    return toxic_words(toxic, safe, z, common)


def test_toxic_words_are_frequent_lemmas_without_stop_words_and_everyday_ones():
    toxic = [f"How do I {verb} soup from them, OK?" for verb in ("steal", "stealing", "stolen", "stealing")] + SAFE[:9]
    [word] = words(toxic)
    assert (word.lemma, word.word, word.toxic, word.safe) == ("steal", "stealing", 4, 0)
    [also] = [each for each in words(toxic, common=0.5, z=-9) if each.lemma == "soup"]
    assert (also.toxic, also.safe) == (6, 10)
    assert not {"how", "from", "ok"} & {each.lemma for each in words(toxic, common=1, z=-99)}


def test_a_word_counts_once_in_each_prompt():
    toxic = ["Steal, steal, steal!", "Rob him.", "Rob her.", "Rob me."]
    assert {each.lemma: each.toxic for each in words(toxic, z=0)} == {"rob": 3, "steal": 1}


def test_the_surest_words_come_first_and_a_higher_threshold_keeps_the_first():
    toxic = ["Rob a shop."] * 6 + ["Trick a bee."] * 3 + ["Mock a cat."]
    low, high = words(toxic, z=0.5), words(toxic, z=2.0)
    assert [each.z for each in low] == sorted((each.z for each in low), reverse=True)
    assert 0 < len(high) < len(low)
    assert high == low[: len(high)]


def test_no_word_is_a_mistake_that_says_what_to_do():
    with pytest.raises(UserError, match=r"smaller contrastive\.z"):
        words(SAFE)
