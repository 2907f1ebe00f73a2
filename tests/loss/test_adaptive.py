"""λ from what was measured: updates by hand, no wind-up, bounds, the override, checkpoints; plain SFT's curve."""

import math
from dataclasses import replace

import pytest

from tasft.errors import UserError
from tasft.loss.adaptive import WINDOW, Adaptive, Goal, reference_curve

# target 2 nats; λ = start * exp(3 u + 5 I); the error is averaged over 2 answers: one moves it half of the way
GOAL = Goal(target=2.0, tolerance=None, gain=3.0, integral=5.0, smoothing=2.0, range=100.0)


def adaptive(goal=GOAL, reference=None, answers=10):
    return Adaptive(goal, start=0.5, reference=reference, steps=20, answers=answers)


def test_updates_by_hand():
    control = adaptive()
    assert control.weight == 0.5
    # nothing has been met: course 0. The fall is 0.4 / 2 = 0.2 of the target, error -0.2; one answer counts half.
    control.update(0.4, 1, safe_loss=1.0, step=0)
    assert control.state() == pytest.approx({"met": 1, "error": -0.1, "excess": 0, "integral": -0.1 * 1 / 10})
    assert control.weight == pytest.approx(0.5 * math.exp(3 * -0.1 + 5 * -0.01))
    # two answers with a mean fall of 0.1 / 2 = 0.05 on a course of 1/10: error 0.05, which counts 3/4
    control.update(0.2, 2, safe_loss=1.0, step=7)
    error = -0.1 + 0.75 * (0.05 + 0.1)
    assert control.state() == pytest.approx({"met": 3, "error": error, "excess": 0, "integral": -0.01 + error * 2 / 10})
    assert control.weight == pytest.approx(0.5 * math.exp(3 * error + 5 * (-0.01 + error * 2 / 10)))


def test_a_single_answer_moves_the_error_by_no_more_than_one():
    control = adaptive()
    control.update(1e6, 1, 1.0, 0)
    assert control.state()["error"] == -0.5


def test_on_course_the_start_is_kept():
    control = adaptive()
    for met in range(10):
        control.update(2.0 * met / 10, 1, 1.0, met)
    assert control.weight == pytest.approx(0.5)


def test_nothing_winds_up_between_toxic_rows():
    seldom, often = adaptive(), adaptive()
    for step in range(20):
        if step % 5 == 0:
            seldom.update(0.1, 1, 1.0, step)
            often.update(0.1, 1, 1.0, step // 5)
        else:
            before = seldom.state(), seldom.weight
            seldom.update(0.0, 0, 1.0, step)
            assert (seldom.state(), seldom.weight) == before
    assert seldom.state() == often.state()


def test_a_constant_error_adds_up_to_the_same_for_any_number_of_toxic_rows():
    # fall always 1 (half a target) behind: the integral is half a training long, up to the error's own rise from 0
    for answers, each in ((1000, 1), (1000, 4), (3000, 3)):
        control = adaptive(replace(GOAL, range=1e9), answers=answers)
        for k in range(0, answers, each):
            control.update(each * (k / answers - 0.5) * GOAL.target, each, 1.0, 0)
        assert control.state()["integral"] == pytest.approx(0.5, abs=0.005)


@pytest.mark.parametrize(("fall", "bound"), [(-1e3, 0.5 * 4), (1e3, 0.5 / 4)])
def test_λ_stays_within_its_bounds_and_comes_back_at_once(fall, bound):
    control = adaptive(replace(GOAL, range=4.0, gain=2.0), answers=100)
    for step in range(60):
        control.update(fall, 1, 1.0, step)
        assert 0.5 / 4 <= control.weight <= 0.5 * 4
    assert control.weight == bound
    assert abs(control.state()["integral"]) < math.log(4) / 5  # not the 60 / 100 of the errors met
    for step in range(3):
        control.update(-fall, 1, 1.0, 60 + step)
    assert (control.weight - 0.5) * (bound - 0.5) < 0


def test_the_safe_loss_overrides_the_target():
    # plain SFT's is 1 throughout; the excess is averaged over WINDOW * 20 = 3 steps
    assert WINDOW * 20 == pytest.approx(3)
    control = adaptive(replace(GOAL, tolerance=0.1), reference=lambda share: 1.0)
    control.update(-4.0, 1, safe_loss=1.15, step=0)  # error 1, of which half; room 1 - 0.05 / 0.1 = 0.5
    assert control.state() == pytest.approx({"met": 1, "error": 0.5, "excess": 0.05, "integral": 0.05})
    assert control.weight == pytest.approx(0.5 * math.exp(3 * 0.5 + 5 * 0.05))
    # a step without toxic rows, with a loss of 1.3: excess 0.05 + 0.25 / 3, room -1/3: less than at the start
    control.update(0.0, 0, safe_loss=1.3, step=1)
    assert control.state() == pytest.approx({"met": 1, "error": 0.5, "excess": 0.4 / 3, "integral": 0.05})
    assert control.weight == pytest.approx(0.5 * math.exp(3 * (1 - 4 / 3) + 5 * 0.05))


def test_plain_sft_is_asked_for_the_same_share_of_the_training():
    asked = []
    control = adaptive(replace(GOAL, tolerance=0.1), reference=lambda share: asked.append(share) or 1.0)
    control.update(0.0, 0, 1.0, 0)
    control.update(0.0, 0, 1.0, 19)
    assert asked == [1 / 20, 1.0]


def test_a_restored_controller_goes_on_as_the_undisturbed_one():
    goal, steps = replace(GOAL, tolerance=0.05), [(0.3 * k, k % 3, 1 + 0.02 * (k % 5), k) for k in range(20)]
    through, broken = (adaptive(goal, lambda share: 1.0 + share) for _ in range(2))
    for k, step in enumerate(steps):
        through.update(*step)
        broken.update(*step)
        kept = broken.state()
        broken = adaptive(goal, lambda share: 1.0 + share)
        broken.restore(kept)
        assert broken.weight == through.weight, k
    assert len({*through.state().values()}) == 4  # all of it moved


def test_without_toxic_answers_or_a_start_there_is_nothing_to_control():
    with pytest.raises(ValueError, match="start"):
        Adaptive(GOAL, 0.0, None, 20, 10)
    with pytest.raises(ValueError, match="toxic answers"):
        adaptive(answers=0)
    with pytest.raises(ValueError, match="plain SFT"):
        adaptive(replace(GOAL, tolerance=0.1))


def test_the_reference_curve_by_hand():
    # steps 1 to 100, loss 3 up to step 50 and 1 after it; within 0.075 of a share lie the 7 steps on either side and it
    curve = reference_curve([{"step": k, "safe_loss": 3.0 if k <= 50 else 1.0} for k in range(1, 101)])
    assert curve(0.2) == 3.0
    assert curve(0.5) == pytest.approx((8 * 3 + 7 * 1) / 15)  # 43 to 50, 51 to 57
    assert curve(0.0) == 3.0
    assert curve(1.0) == 1.0


def test_a_sparse_log_gives_the_nearest_loss():
    curve = reference_curve(
        [{"step": 50, "safe_loss": 2.0}, {"step": 75, "safe_loss": None}, {"step": 100, "safe_loss": 1.0}]
    )
    assert [curve(0.1), curve(0.7), curve(0.8), curve(1.0)] == [2.0, 2.0, 1.0, 1.0]


@pytest.mark.parametrize("metrics", [[], [{"step": 1, "safe_loss": None}]])
def test_metrics_without_safe_losses_are_refused(metrics):
    with pytest.raises(UserError, match="loss=sft"):
        reference_curve(metrics)
