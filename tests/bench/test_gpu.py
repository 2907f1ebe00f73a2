import math

import torch

from bench import gpu, rig

TINY = rig.Shape(vocabulary=64, width=16, layers=1, heads=2)


def test_it_runs_at_a_tiny_shape_on_a_cpu():
    ways = [gpu.Layout("sdpa", packing=False), gpu.Layout("sdpa", packing=True)]
    rows = gpu.measure(True, TINY, "cpu", torch.float32, (1024, 512), count=8, peak_size=32, ways=ways)
    kinds = [row["what"].split(",")[0] for row in rows]
    assert kinds == ["SFT step"] * 5 + ["EMD step"] * 4 + ["head time"] * 2
    assert all(math.isfinite(row["ratio"]) and row["ratio"] > 0 for row in rows)
    padded, packed, fastest = rows[0], rows[2], rows[4]
    assert fastest["ratio"] in [row["ratio"] for row in rows[:4]] and fastest["target"] == gpu.SHARE_TARGET
    assert "sdpa, sorted, padded, 1024" in padded["what"]
    assert "sdpa, packed (dense block mask), 1024" in packed["what"]
    assert padded["details"]["real_share"] < packed["details"]["real_share"] == 1.0
    assert padded["details"]["peak_gib"] is None


def test_a_layout_that_cannot_run_says_why():
    rows = gpu.measure(True, TINY, "cpu", torch.float32, (64,), 4, 32, [gpu.Layout("no_such_attention", True)])
    assert rows[0]["ratio"] is None and rows[0]["met"] is None
    assert rows[0]["of"].startswith("failed: ") and "no_such" in rows[0]["of"]
    assert [row["what"].split(",")[0] for row in rows[1:]] == ["head time"] * 2


def test_flops_of_a_step_by_hand():
    module = rig.fine_tuning(rig.llama(TINY), "emd", 64)
    batch = rig.step_batch(rig.examples([10, 10], TINY.vocabulary, toxic=(1,)), "emd")
    measured = gpu.step_speed(module, TINY, batch, "cpu", steps=1)
    backbone = 4 * 16 * 16 + 3 * 16 * 43
    # 4 response tokens each; 2 products for the safe row, 4 for the toxic one
    flops = 4 * backbone * 20 + 2 * 64 * 16 * (4 * 2 + 4 * 4)
    assert math.isclose(measured.flops / measured.speed, flops / 20)


def test_the_7b_shape_is_llama_7b():
    matrices = gpu.LLAMA_7B.backbone_parameters + 2 * gpu.LLAMA_7B.head_parameters
    norms = (2 * 32 + 1) * 4096
    assert matrices + norms == 6_738_415_616
