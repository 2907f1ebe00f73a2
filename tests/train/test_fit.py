"""Whole trainings: the same trajectory however cut, exact resume, small checkpoints, no damage when a loss blows up."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback

import tasft.train.fit as fit_module
from tasft.errors import UserError
from tasft.train.fit import last_checkpoint
from tests.train.tiny import batches, module

TERMS = ("loss", "safe_loss", "toxic_loss")


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("loss", ["sft", "emd", "nlcl"])
def test_each_terms_trajectory_is_that_of_any_micro_batch(loss, dropout, train):
    wanted = train(module(loss, dropout, max_tokens=10_000), batches(loss))
    assert [row["step"] for row in wanted] == list(range(1, 13))  # 40 rows at 12: 4 steps an epoch, the last one short
    for budget, packing in ((1, False), (60, False), (10_000, True)):
        got = train(module(loss, dropout, max_tokens=budget, packing=packing), batches(loss))
        for term in TERMS:
            torch.testing.assert_close([row[term] for row in got], [row[term] for row in wanted], rtol=1e-5, atol=1e-6)
    if loss != "sft":
        assert wanted[-1]["toxic_loss"] != wanted[0]["toxic_loss"]


def test_training_lowers_the_safe_loss_and_the_toxic_loss(train):
    metrics = train(module("emd", steps=48), batches("emd", epochs=12))
    for term in ("safe_loss", "toxic_loss"):
        first, last = ([row[term] for row in rows] for rows in (metrics[:4], metrics[-4:]))
        assert sum(last) < sum(first)


class Stop(Exception):
    """Stands for a kill."""


def stopped_after(step, monkeypatch):
    """Makes `fit` die once `step` steps are done and written."""

    class Die(fit_module.StepRecords):
        def on_train_batch_end(self, trainer, tuned, *rest):
            super().on_train_batch_end(trainer, tuned, *rest)
            if tuned.result.step == step:
                raise Stop

    monkeypatch.setattr(fit_module, "StepRecords", Die)


def test_resume_is_bit_for_bit_an_undisturbed_run(train, tmp_path, monkeypatch):
    whole = module(dropout=0.3)
    wanted = train(whole, batches(), tmp_path / "whole", checkpoint_every=2)
    with monkeypatch.context() as patched:
        stopped_after(7, patched)
        with pytest.raises(Stop):
            train(module(dropout=0.3), batches(), tmp_path / "cut", checkpoint_every=2)
    assert last_checkpoint(tmp_path / "cut" / "checkpoints").name == "step6.ckpt"
    resumed = module(dropout=0.3)
    torch.manual_seed(12345)  # what the process drew before must not matter
    got = train(resumed, batches(), tmp_path / "cut", checkpoint_every=2)
    assert got == wanted
    for a, b in zip(whole.trained(), resumed.trained(), strict=True):
        assert torch.equal(a, b)


def test_a_run_cut_after_its_last_step_only_loads(train, tmp_path):
    whole = module()
    wanted = train(whole, batches(), tmp_path / "run")
    again = module()
    assert train(again, batches(), tmp_path / "run") == wanted
    assert all(torch.equal(a, b) for a, b in zip(whole.trained(), again.trained(), strict=True))


def test_dropout_depends_on_the_seed_and_is_there(train):
    without, with_dropout = train(module(), batches()), train(module(dropout=0.5), batches())
    assert without[0]["safe_loss"] != with_dropout[0]["safe_loss"]
    assert train(module(dropout=0.5), batches()) == with_dropout


def test_checkpoints_hold_the_adapter_alone(train, tmp_path):
    train(module(), batches(), tmp_path / "run", checkpoint_every=5)
    files = sorted(f.name for f in (tmp_path / "run" / "checkpoints").iterdir())
    assert files == ["step10.ckpt", "step12.ckpt"]
    saved = torch.load(tmp_path / "run" / "checkpoints" / "step12.ckpt", weights_only=True)
    assert len(saved["state_dict"]) == 8  # A and B of q_proj and v_proj in two layers
    assert all("lora_" in name for name in saved["state_dict"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(bad, train, tmp_path, monkeypatch):
    tuned = module()

    class Poison(Callback):
        def on_train_batch_start(self, trainer, tuned, batch, index):
            if batch.step == 5:
                tuned.trained()[0].data.fill_(bad)

    real = fit_module.lightning.Trainer
    monkeypatch.setattr(
        fit_module.lightning, "Trainer", lambda **k: real(**k | {"callbacks": [*k["callbacks"], Poison()]})
    )
    with pytest.raises(UserError, match="at step 6: checkpoints before it are kept"):
        train(tuned, batches(), tmp_path / "run", checkpoint_every=2)
    saved = torch.load(last_checkpoint(tmp_path / "run" / "checkpoints"), weights_only=True)
    assert last_checkpoint(tmp_path / "run" / "checkpoints").name == "step4.ckpt"
    assert all(torch.isfinite(tensor).all() for tensor in saved["state_dict"].values())


def test_a_damaged_checkpoint_is_passed_over(train, tmp_path):
    train(module(), batches(), tmp_path / "run", checkpoint_every=5)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert last_checkpoint(checkpoints).name == "step12.ckpt"
    (checkpoints / "step12.ckpt").write_bytes((checkpoints / "step12.ckpt").read_bytes()[:1000])
    assert last_checkpoint(checkpoints).name == "step10.ckpt"
