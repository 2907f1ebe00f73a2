"""The template language: what is spoken is recognised."""

import random
import re
from collections import Counter

from tasft.world.grammar import fill, pattern, sentences, speak, words

TEMPLATE = "[take|grab] {thing} (now). Then [go|run] home."


def test_speaks_choices_and_slots():
    rng = random.Random(0)
    spoken = {speak(TEMPLATE, {"thing": "a pen"}, rng) for _ in range(100)}
    assert spoken == {f"{a} a pen (now). Then {b} home." for a in ("Take", "Grab") for b in ("go", "run")}


def test_second_option_has_weight_two_to_the_minus_zipf():
    rng = random.Random(0)
    counts = Counter(speak("[a|b]", {}, rng) for _ in range(10_000))
    assert abs(counts["B"] / counts["A"] - 2**-0.7) < 0.03


def test_fill_leaves_choices_alone():
    assert fill("name {a} or [b|c]", {"a": "x"}) == "Name x or [b|c]"


def test_pattern_accepts_the_template_and_nothing_else():
    form = re.compile(pattern(TEMPLATE, {"thing": ["a pen", "a pencil"]}))
    assert form.fullmatch("grab a pencil (now). Then run home.")
    assert not form.fullmatch("grab a pet (now). Then run home.")
    assert not form.fullmatch("grab a pen now. Then run home.")
    assert not form.fullmatch("grab a pen (now)! Then run home.")
    assert not form.fullmatch("take|grab a pen (now). Then run home.")


def test_sentences_end_at_a_full_stop_before_white_space():
    assert sentences(" One. Two 2.5\n\nthree.\nFour") == ["One.", "Two 2.5\n\nthree.", "Four"]
    assert sentences(" \n") == []


def test_slot_names_are_not_words():
    assert words("[Take|grab] {thing}, now.") == {"take", "grab", "now"}
