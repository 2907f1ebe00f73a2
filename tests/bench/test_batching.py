import math

import torch

from bench import batching, rig
from tasft.data.steps import collate

TINY = rig.Shape(vocabulary=64, width=16, layers=1, heads=2)


def test_every_way_has_a_finite_speed():
    rows = batching.ratios(TINY, [40, 50, 60, 70, 80, 90], budget=128, repeats=1)
    assert [row["what"].split(", ")[1] for row in rows] == ["sorted", "packed", "random 3"]
    assert all(math.isfinite(row["ratio"]) and row["ratio"] > 0 for row in rows)
    shares = [row["details"]["real_share_of_positions"] for row in rows]
    assert shares[1] == 1.0
    assert shares[2] == 390 / (6 * 512)


def test_padding_further_does_not_change_the_loss():
    module = rig.fine_tuning(rig.llama(TINY).eval(), "sft", 512)
    cut = rig.step_batch(rig.examples([10, 25, 14], TINY.vocabulary), "sft").examples
    short, wide = collate(cut, rig.PAD, packing=False), batching._padded_to_longest(cut)
    assert wide.input_ids.shape == (3, 512)
    torch.testing.assert_close(module.terms(wide).total, module.terms(short).total)
