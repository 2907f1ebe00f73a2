"""The study on disk: who runs which trial, after which kills, and which trials are stopped."""

import multiprocessing
import signal
import time

import optuna
import pytest
from hydra import compose, initialize_config_dir
from optuna.distributions import FloatDistribution
from optuna.pruners import NopPruner
from optuna.trial import TrialState, create_trial

from tasft.config import CONF, checked, register
from tasft.errors import UserError
from tasft.search.checks import same_search
from tasft.search.study import LambdaStudy, WorseThanMedian, evenly, pruner, rounded

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.search.test_study"])


def settings(*overrides):
    register()
    base = ["model=tiny", "data=tiny", "judge=[oracle]", "benchmark=[]", "search.low=0.01", "search.high=1"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return checked(compose("search", overrides=[*base, "search.trials=9", *overrides])).search


def opened(folder, *overrides, seed=0):
    return LambdaStudy(folder, settings(*overrides), seed, NopPruner())


def worth(value):
    """Harm falls with λ; from 0.3 on the quality is broken."""
    return 1 / (1 + 20 * value) if value < 0.3 else 1 + value


def test_a_search_goes_on_where_its_judge_is_served_at_another_address(tmp_path):
    same_search(tmp_path, {"search.low": 0.1, "judge.pair.base_url": "http://localhost:8000/v1"})
    same_search(tmp_path, {"search.low": 0.1, "judge.pair.base_url": "one's own"})
    with pytest.raises(UserError, match=r"base_url is http://localhost:8000/v1 there, None here\)"):
        same_search(tmp_path, {"search.low": 0.1, "judge.pair.base_url": None})


def go_on(folder, pause=0.0, stop_after=None):
    """What a process does: trial after trial; the λ of those that it ran."""
    study, ran = opened(folder), []
    while claim := study.claim():
        ran.append((claim.trial.number, claim.value))
        if stop_after is not None and len(ran) > stop_after:
            time.sleep(60)  # in the middle of a trial, to be killed
        time.sleep(pause)
        study.ended(claim, worth(claim.value), {"by": multiprocessing.current_process().pid})
    return ran


def values(study):
    return [rounded(trial.params["loss.share"]) for trial in study.trials()]


def test_values_lie_evenly_on_a_log_scale():
    assert [rounded(value) for value in evenly(0.01, 1, 5)] == [0.01, 0.0316, 0.1, 0.316, 1]
    assert evenly(0.25, 4, 1) == [1]
    assert [rounded(value) for value in (0.123456, 12.3456, 1234.56)] == [0.123, 12.3, 1230]


def test_a_grid_is_even_and_tpe_begins_so_and_then_looks_where_it_is_good(tmp_path):
    ran = go_on(tmp_path)
    assert [value for _, value in ran[:5]] == [0.01, 0.0316, 0.1, 0.316, 1]
    later = [value for _, value in ran[5:]]
    assert len(set(later)) == 4 and all(0.01 <= value <= 1 for value in later)
    assert sum(0.0316 <= value <= 0.316 for value in later) >= 3  # of two decades the better one
    grid = opened(tmp_path / "grid", "search.sampler=grid", "search.trials=3")
    while claim := grid.claim():
        grid.ended(claim, 0.5, {})
    assert values(grid) == [0.01, 0.1, 1]


def test_a_search_that_is_killed_goes_on_as_it_would_have_gone(tmp_path):
    undisturbed = go_on(tmp_path / "whole")
    for stop_after in (2, 4):  # the first process dies among the even trials, the second among TPE's
        process = CONTEXT.Process(target=go_on, args=(tmp_path / "killed", 0.0, stop_after))
        process.start()
        study = opened(tmp_path / "killed")
        while [trial.state for trial in study.trials()][-1:] != [TrialState.RUNNING] or len(
            study.trials()
        ) <= stop_after:
            assert process.is_alive()
            time.sleep(0.1)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    left = go_on(tmp_path / "killed")
    study = opened(tmp_path / "killed")
    assert [(trial.number, value) for trial, value in zip(study.trials(), values(study), strict=True)] == undisturbed
    assert left == undisturbed[-len(left) :] and 0 < len(left) < 9  # nothing that had ended was run again
    assert study.complete and not opened(tmp_path / "killed").claim()


def test_two_processes_share_the_trials(tmp_path):
    processes = [CONTEXT.Process(target=go_on, args=(tmp_path, 0.1)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    study = opened(tmp_path)
    assert study.complete and [trial.number for trial in study.trials()] == list(range(9))
    assert len({trial.user_attrs["by"] for trial in study.trials()}) == 2
    assert len({value for value in values(study)}) == 9


def test_a_trial_at_work_is_left_alone(tmp_path):
    first, second = opened(tmp_path), opened(tmp_path)
    claim = first.claim()
    assert claim.trial.number == 0 and second.claim().trial.number == 1
    first.ended(claim, 0.5, {})
    assert not first.complete


def test_failed_trials_are_tried_again_by_the_next_call_in_their_own_places(tmp_path):
    study = opened(tmp_path, "search.trials=3", "search.startup=3")
    for failed in (False, True, False):
        study.ended(study.claim(), None if failed else 0.5, {"reason": "no disk"} if failed else {}, failed)
    assert study.claim() is None and study.complete
    again = opened(tmp_path, "search.trials=3", "search.startup=3")
    assert not again.complete
    claim = again.claim()
    assert claim.value == 0.1
    again.ended(claim, 0.4, {})
    assert again.complete and again.claim() is None
    assert [(trial.value, "reason" in trial.user_attrs) for trial in again.trials()] == [
        (0.5, False), (0.5, False), (0.4, False)
    ]  # fmt: skip
    more = opened(tmp_path, "search.trials=4", "search.startup=3")
    assert more.claim().trial.number == 4


def test_a_damaged_study_is_said_to_be(tmp_path):
    go_on(tmp_path)
    journal = tmp_path / "study.journal"
    lines = journal.read_bytes().split(b"\n")
    journal.write_bytes(b"\n".join([*lines[:3], b"{nonsense", *lines[3:]]))
    with pytest.raises(UserError, match=r"study.journal is damaged"):
        opened(tmp_path)


def completed(value, seen):
    return create_trial(
        value=value, params={"x": 0.5}, distributions={"x": FloatDistribution(0.01, 1)}, intermediate_values=seen
    )


def asked(study, judge, seen):
    trial = create_trial(state=TrialState.PRUNED, intermediate_values=seen)
    return judge.prune(study, trial)


def test_worse_than_the_median_of_those_that_kept_the_quality_at_the_same_step():
    study = optuna.create_study()
    judge = WorseThanMedian(after=3, warmup=20)
    for value, seen in ((0.9, {10: 1.0, 20: 0.95}), (0.4, {10: 0.9, 20: 0.8}), (1.2, {10: 0.5, 20: 0.1})):
        study.add_trial(completed(value, seen))
    assert not asked(study, judge, {20: 1.0})  # two to compare with: the third broke the quality
    study.add_trial(completed(0.1, {10: 0.8, 20: 0.5}))
    assert asked(study, judge, {20: 0.81}) and not asked(study, judge, {20: 0.8})
    assert asked(study, judge, {10: 0.1, 20: 0.81})  # what counts is how it stands now
    assert asked(study, judge, {20: 1.02})
    assert not asked(study, judge, {10: 1.0})  # too early
    assert not asked(study, judge, {25: 1.0})  # nobody was looked at there
    assert not asked(study, judge, {})


def test_which_pruner_is_asked_for():
    assert isinstance(pruner(settings(), None, 90), NopPruner)
    assert isinstance(pruner(settings("search.pruner=null"), 15, 90), NopPruner)
    assert pruner(settings(), 15, 90).warmup == 27
    halving = pruner(settings("search.pruner=halving"), 15, 90)
    study = optuna.create_study(pruner=halving)
    stopped = []
    for worst in (0.9, 0.8, 0.95, 0.5):
        trial = study.ask()
        trial.report(worst, 30)
        stopped.append(trial.should_prune())
    assert stopped == [False, False, True, False]
