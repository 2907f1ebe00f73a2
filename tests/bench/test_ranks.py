import json

from bench import ranks, rig
from tasft.train.group import ALONE


def test_a_rank_says_what_it_took_without_the_first_step(tmp_path):
    ranks._train(rig.Shape(vocabulary=64, width=16, layers=1, heads=2), 3, False, tmp_path, ALONE, None)
    said = json.loads((tmp_path / "0.json").read_text())
    assert said["tokens"] < sum(rig.alpaca_like(3 * ranks.EXAMPLES))
    assert said["tokens"] > 0.5 * sum(rig.alpaca_like(3 * ranks.EXAMPLES))
    assert said["seconds"] > 0
