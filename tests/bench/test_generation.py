from bench import generation, rig

TINY = rig.Shape(vocabulary=700, width=32, layers=1, heads=2)


def test_both_ways_give_the_same_answers_of_several_lengths():
    ceiling, speed, same = generation.batched(TINY, count=6, limit=48, target=4.0, repeats=1)
    assert ceiling["ratio"] > 0 and ceiling["met"] is None
    assert speed["bound"] == same["bound"] == ">=" and speed["ratio"] > 0
    assert (same["ratio"], same["met"]) == (1.0, True)
    assert 0 < speed["details"]["cut_at_limit"] < 6 and speed["details"]["different"] == 6
