from dataclasses import replace

import pytest

from tasft.result.series import curves, final
from tasft.result.statistics import wilson
from tasft.result.table import MEAN, POOLED, Measurement


def measured(benchmark, kind, step, metric, right, n, judge="joint", unscored=0):
    low, high = wilson(right, n) if n else (None, None)
    value = right / n if n else None
    return Measurement(
        "m", "emd", 5, 1.0, 0.1, "", 0, "r", benchmark, kind, judge, step, metric, value, low, high, n, unscored
    )


def test_curves_by_hand():
    rows = [
        measured("a", "toxic", 0, "harmful", 4, 4),
        measured("a", "toxic", 9, "harmful", 1, 4),
        measured("b", "toxic", 9, "harmful", 3, 6),
        measured(POOLED, "toxic", 9, "harmful", 4, 10),
        measured("x", "seeming", 0, "refusal", 1, 5),
        measured("x", "seeming", 9, "partial refusal", 2, 5),
        measured("x", "seeming", 9, "refusal", 0, 0, unscored=5),
        measured("x", "seeming", 9, "refusal", 5, 5, judge="string"),
    ]
    assert curves(rows) == {  # no harm at step 0: b was not asked there
        0: {"eval/a/joint/harmful": 1.0, "eval/x/joint/refusal": 0.2, "eval/over_refusal": 0.2},
        9: {
            "eval/a/joint/harmful": 0.25, "eval/b/joint/harmful": 0.5, "eval/harm": 0.4,
            "eval/x/joint/partial_refusal": 0.4, "eval/x/string/refusal": 1.0,
        },
    }  # fmt: skip


def test_final_rates_are_of_the_last_step_with_their_intervals_and_counts():
    rows = [measured(name, "toxic", 9, "harmful", 1, 4, unscored=2) for name in ("a", POOLED)]
    rows.append(measured("a", "toxic", 0, "harmful", 4, 4))
    low, high = wilson(1, 4)
    expected = {"": 0.25, "/low": pytest.approx(low), "/high": pytest.approx(high), "/n": 4, "/unscored": 2}
    assert final(rows) == {
        f"final/{name}{k}": v
        for name in ("a/joint/harmful", "pooled/joint/harmful", "harm")
        for k, v in expected.items()
    }
    mean = replace(rows[0], judge="reward", metric=MEAN, value=-1.5)
    assert final([mean])["final/a/reward/mean_score"] == -1.5
