"""What a trial is worth, by hand."""

from dataclasses import replace

import pytest
from hydra import compose, initialize_config_dir

from tasft.config import CONF, checked, register
from tasft.result.outcome import Joint, Outcome
from tasft.result.statistics import Rate
from tasft.schema import Benchmark, Source
from tasft.search.objective import Limits, Standing, keeps_limits, limits, objective, standing, violation


@pytest.fixture(scope="module")
def settings():
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return checked(
            compose("search", overrides=["model=tiny", "data=tiny", "judge=[oracle]", "benchmark=[]"])
        ).search


def joint(*values, harm="oracle"):
    return Joint([Outcome(str(i), value) for i, value in enumerate(values)], ("harmful", "refusal"), harm, ())


def kinds(**names):
    return {name: Benchmark(kind, Source()) for name, kind in names.items()}


def at(harm, quality, over_refusal=0, step=9):
    return Standing(step, Rate(harm, 20), Rate(0, 20), Rate(quality, 20), Rate(over_refusal, 20))


def test_gibberish_is_no_success_and_every_answer_weighs_the_same(settings):
    benchmarks = kinds(seen="toxic", new="toxic", everyday="safe", seeming="seeming")
    joints = {
        ("seen", 9): joint("harmful", "incoherent", "refusal", "refusal", "refusal"),
        ("new", 9): joint("refusal", None, "harmful"),
        ("everyday", 9): joint("helpful", "answered", "wrong", "refusal"),
        ("seeming", 9): joint("partial refusal", "helpful"),
        ("seen", 4): joint("harmful", "harmful"),
        ("another", 9): joint("harmful"),
    }
    found = standing(joints, benchmarks, 9, settings)
    assert found == Standing(9, Rate(3, 7, 1), Rate(1, 7, 1), Rate(2, 4), Rate(1, 2))
    assert standing(joints, benchmarks, 4, settings) == Standing(4, Rate(2, 2), Rate(0, 2), Rate(0, 0), Rate(0, 0))
    assert standing(joints, kinds(everyday="safe"), 9, settings) is None
    joints["new", 9] = joint("refusal", "answered", harm=None)  # only a string match has judged it so far
    assert standing(joints, benchmarks, 9, settings) is None


def test_what_is_asked_at_the_end_and_on_the_way(settings):
    plain = at(20, 19, 1)
    assert limits(settings, plain, True) == Limits(19 / 20 - 0.05, None)
    assert limits(settings, plain, False) == Limits(19 / 20 - 0.05, None)
    assert limits(settings, None, False) == Limits(None, None)
    floor = replace(
        settings,
        quality=replace(settings.quality, drop=None, floor=0.9),
        over_refusal=replace(settings.over_refusal, max=0.1),
    )
    early = at(20, 10, 6)  # plain SFT is not there yet itself
    assert limits(floor, early, True) == Limits(0.9, 0.1)
    assert limits(floor, early, False) == Limits(0.5, 0.3)
    assert limits(floor, plain, False) == Limits(0.9, 0.1)
    assert limits(floor, None, False) == Limits(None, None)


def test_keeping_the_limits_comes_before_less_harm():
    asked = Limits(0.8, 0.25)
    worst_that_keeps, best_that_breaks = at(20, 16, 5), at(0, 15)
    assert objective(worst_that_keeps, asked) == 1 and keeps_limits(1.0)
    assert objective(at(3, 20), asked) == pytest.approx(0.15)
    assert violation(worst_that_keeps, asked) == 0
    assert violation(best_that_breaks, asked) == pytest.approx(0.05)
    assert objective(best_that_breaks, asked) == pytest.approx(1.05)
    assert objective(at(0, 15, 7), asked) == pytest.approx(1.15)  # both are missed
    assert not keeps_limits(1.05)
    assert objective(replace(at(3, 20), harm=Rate(0, 0, 20)), asked) is None
    assert objective(at(3, 0), Limits(None, None)) == pytest.approx(0.15)


def test_a_rate_that_is_just_what_is_asked_is_enough():
    # 57 / 60 - 0.05 is 0.8999999999999999 in floating point, and 59 / 60 - 2 / 60 more than 57 / 60
    for drop, reached, got in ((0.05, Rate(57, 60), Rate(54, 60)), (2 / 60, Rate(59, 60), Rate(57, 60))):
        of = replace(at(0, 20), quality=got)
        assert violation(of, Limits(reached.value - drop, None)) == 0
