"""Two ranks train what one process trains: every loss, with and without dropout, with the model whole and dealt out."""

import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch

from tasft.launch import launch
from tasft.train.group import ALONE
from tests.train.ranks import both_ways, cases, train_all

TERMS = ("loss", "safe_loss", "toxic_loss", "weight", "grad_norm", "toxic_fall")
NAMES = [name for name, _, _ in cases(1)] + ["asked"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one process and two ranks found, by way."""
    folder = tmp_path_factory.mktemp("ranks")
    for way in ("one", "ddp", "fsdp"):
        (folder / way).mkdir()
    train_all(folder / "one", False, ALONE)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), *([before] if before else [])])
    try:
        launch(partial(both_ways, folder), "cpu", 2, folder / "logs", threads=1)
    finally:
        os.environ.pop("PYTHONPATH")
        os.environ |= {} if before is None else {"PYTHONPATH": before}
    return {way: json.loads((folder / way / "found.json").read_text()) for way in ("one", "ddp", "fsdp")}


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_go_the_way_of_one_process(found, way, name):
    wanted, got = found["one"][name], found[way][name]
    assert len(got["metrics"]) == len(wanted["metrics"]) >= 3
    for a, b in zip(got["metrics"], wanted["metrics"], strict=True):
        assert a.keys() == b.keys()
        assert {k: a[k] for k in a if k not in TERMS} == {k: b[k] for k in b if k not in TERMS}
        for term in a.keys() & set(TERMS):
            assert a[term] == pytest.approx(b[term], rel=1e-5, abs=1e-6), (term, a["step"])
    torch.testing.assert_close(torch.tensor(got["weights"]), torch.tensor(wanted["weights"]), rtol=1e-4, atol=1e-5)
    assert got.get("said") == wanted.get("said")
