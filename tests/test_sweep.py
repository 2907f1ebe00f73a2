"""A grid of cells: real sweeps of small runs through Hydra's launchers."""

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from tasft.config import CONF, register
from tasft.errors import UserError
from tasft.sweep import expand


def expanded(*arguments, lines=("",), params=None):
    """The cells of a command line as sets of overrides."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        config = hydra.compose_config("run", list(arguments), RunMode.MULTIRUN)
        return expand(lines, params or {}, arguments, config, hydra.config_loader)


def test_a_grid_is_the_union_of_its_lines():
    lines = ["loss=emd data.toxic=1000,500", "loss=sft data.safe_answers=300,100 data.toxic=0"]
    assert expanded(lines=lines) == [
        ("loss=emd", "data.toxic=1000"),
        ("loss=emd", "data.toxic=500"),
        ("loss=sft", "data.safe_answers=300", "data.toxic=0"),
        ("loss=sft", "data.safe_answers=100", "data.toxic=0"),
    ]


def test_the_command_line_wins_over_a_line_and_a_line_over_params():
    cells = expanded(
        "data.toxic=7", "seed=1,2", lines=["loss=emd,nlcl data.toxic=1,2"], params={"loss": "kto", "epochs": 9}
    )
    assert cells == [
        (f"loss={loss}", "epochs=9", "data.toxic=7", f"seed={seed}") for loss in ("emd", "nlcl") for seed in (1, 2)
    ]


def test_a_line_refers_to_the_config():
    lines = ["data.toxic=${prefill.tokens} loss=${loss.name} epochs=${epochs}"]
    cells = expanded("prefill.tokens=[3,4]", "loss=nlcl", "epochs=5", lines=lines)
    assert {cell[0] for cell in cells} == {"data.toxic=3", "data.toxic=4"}
    assert all({"loss=nlcl", "epochs=5"} <= set(cell) for cell in cells)
    with pytest.raises(UserError, match=r"hydra\.sweeper\.cells: there is no value \$\{seeds\} for 'seed=\$\{seeds\}'"):
        expanded(lines=["seed=${seeds}"])


def test_a_cell_of_two_lines_is_one_cell():
    assert len(expanded(lines=["loss=emd data.toxic=1,2", "loss=emd data.toxic=2,3"])) == 3
