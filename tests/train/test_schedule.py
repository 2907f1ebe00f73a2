"""Learning rates by hand."""

import pytest

from tasft.train.schedule import Schedule, rate


def test_linear():
    schedule = Schedule("linear", warmup_steps=2, steps=6)
    assert [rate(schedule, step) for step in range(7)] == [0, 0.5, 1, 0.75, 0.5, 0.25, 0]


def test_constant():
    schedule = Schedule("constant", warmup_steps=1, steps=3)
    assert [rate(schedule, step) for step in range(4)] == [0, 1, 1, 1]


def test_cosine_with_a_floor():
    schedule = Schedule("cosine", warmup_steps=0, steps=4, floor=0.2)
    # (1 + cos 45°) / 2 = 0.853553
    assert [rate(schedule, step) for step in (0, 1, 2, 4, 9)] == pytest.approx([1, 0.2 + 0.8 * 0.853553, 0.6, 0.2, 0.2])
