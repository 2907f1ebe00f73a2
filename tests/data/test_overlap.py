"""Which training prompts a benchmark asks, too: numbers by hand, a twin of plain sets, and hostile texts."""

import random
import unicodedata

import pytest

from tasft.data.overlap import CHUNK, normalised, overlaps, shingles


def found(prompts, benchmarks, similarity):
    return [(o.index, o.benchmark, o.prompt, o.similarity) for o in overlaps(prompts, benchmarks, similarity)]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("  How do I\tbake\n bread ?", "how do i bake bread"),
        ("“What’s up?” — he said…", "whats up he said"),
        ("WHAT'S UP", "whats up"),
        ("Straße", "strasse"),
        ("ﬁne ２０", "fine 20"),
        ("cafe\N{COMBINING ACUTE ACCENT}", "café"),
        ("zero\N{ZERO WIDTH SPACE}width", "zerowidth"),
        ("3 + 4 < 8, C++", "3 + 4 < 8 c++"),
        ("面包怎么做？", "面包怎么做"),
        ("रोटी कैसे बनती है?", "रोटी कैसे बनती है"),
        ("?!… \n", ""),
        ("", ""),
    ],
)
def test_normalised(text, same):
    assert normalised(text) == same
    assert normalised(same) == same


def test_every_character_normalises_for_good():
    for code in range(0, 0x30000, 7):
        character = chr(code)
        if unicodedata.category(character) != "Cs":
            once = normalised(f"x{character}y")
            assert normalised(once) == once, hex(code)


def test_shingles_by_hand():
    assert shingles("") == set()
    assert shingles("a bc def") == {" a ", " bc ", " def", "def "}
    assert shingles("abab abab") == {" aba", "abab", "bab "}


@pytest.mark.parametrize(
    ("prompt", "asked", "similarity"),
    [
        ("ab cd", "ab ce", 1 / 3),  # " ab " of " ab ", " cd ", " ce "
        ("abc", "abcd", 1 / 4),  # " abc" of " abc", "abc ", "abcd", "bcd "
        ("ab cd ef gh", "ab cd ef gh ij", 4 / 5),
        ("ab", "ab ab ab cd", 1 / 2),  # sets: how often does not matter
        ("ab cd!", "AB? cd", 1.0),
    ],
)
def test_similarity_by_hand(prompt, asked, similarity):
    assert found([prompt], {"b": [asked]}, similarity) == [(0, "b", asked, similarity)]
    assert found([asked], {"b": [prompt]}, similarity) == [(0, "b", prompt, similarity)]
    if similarity < 1:
        assert found([prompt], {"b": [asked]}, similarity + 1e-9) == []


def test_other_order_is_near_but_never_equal():
    ((_, _, _, similarity),) = found(["man bites dog"], {"b": ["dog bites man"]}, 0.99)
    assert 0.999 < similarity < 1
    assert found(["man bites dog"], {"b": ["dog bites man"]}, 1.0) == []


def test_the_most_similar_counts_and_of_equally_similar_ones_the_first():
    first, second = ["ab cd ef xx", "ab cd ef yy"], ["ab cd ef zz", "ab cd ef gh"]
    assert found(["ab cd ef gh"], {"1": first, "2": second}, 0.5) == [(0, "2", "ab cd ef gh", 1.0)]
    assert found(["ab cd ef"], {"1": first, "2": second}, 0.5) == [(0, "1", "ab cd ef xx", 3 / 4)]
    assert found(["ab cd ef"], {"2": second, "1": first}, 0.5) == [(0, "2", "ab cd ef zz", 3 / 4)]
    assert found(["Ab", "zz", "aB?"], {"1": ["ab"], "2": ["AB"]}, 0.5) == [(0, "1", "ab", 1.0), (2, "1", "ab", 1.0)]


@pytest.mark.parametrize("similarity", [0.5, 1.0])
def test_nothing_overlaps_nothing(similarity):
    assert found([], {"b": ["ab"]}, similarity) == []
    assert found(["ab"], {}, similarity) == []
    assert found(["ab"], {"b": []}, similarity) == []
    assert found(["", " ", "?!", "cd"], {"b": ["", "...", "ab"]}, similarity) == []


@pytest.mark.parametrize("similarity", [0.1, 0.4, 0.75, 1.0])
def test_a_twin_of_plain_sets_agrees(similarity):
    draw = random.Random(5)
    words = ["ab", "abc", "bcd", "abcd", "Cde", "defgh", "e", "é", "面包", "a-b", "?"]

    def texts(count):
        return [" ".join(draw.choices(words, k=draw.randint(0, 5))) for _ in range(count)]

    prompts = texts(CHUNK + 300)  # more than one chunk
    benchmarks = {"1": texts(30), "2": texts(30)}
    wanted = []
    for index, prompt in enumerate(prompts):
        mine, best = normalised(prompt), (0.0, "", "")
        for name, asked in benchmarks.items():
            for text in asked:
                a, b = shingles(mine), shingles(normalised(text))
                if a and b:
                    value = 1.0 if mine == normalised(text) else min(len(a & b) / len(a | b), 1 - 2**-53)
                    best = max(best, (value, name, text), key=lambda each: each[0])
        if best[0] >= similarity:
            wanted.append((index, best[1], best[2], best[0]))
    assert len(wanted) > 20
    assert found(prompts, benchmarks, similarity) == wanted
