import pytest
import torch

from bench import generation, rig

TINY = rig.Shape(vocabulary=700, width=32, layers=1, heads=2)


def test_both_ways_give_the_same_answers_of_several_lengths():
    ceiling, speed, same = generation.batched(TINY, count=6, limit=48, target=4.0, repeats=1)
    assert ceiling["ratio"] > 0 and ceiling["met"] is None
    assert speed["bound"] == same["bound"] == ">=" and speed["ratio"] > 0
    assert (same["ratio"], same["met"]) == (1.0, True)
    assert 0 < speed["details"]["cut_at_limit"] < 6 and speed["details"]["different"] == 6


def test_ms_a_token_and_the_ratio_belong_together():
    said = generation.decoding(TINY, "cpu", torch.float32, tokens=4, target=None)
    alone, together = said["details"]["ms_a_token_1"], said["details"]["ms_a_token_32"]
    assert said["ratio"] == pytest.approx(32 * alone / together) and alone > 0
