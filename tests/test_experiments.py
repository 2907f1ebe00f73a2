"""The paper's experiments: every cell composes, is good, and is the one that the paper has."""

from collections import Counter
from copy import deepcopy
from functools import cache

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from tasft.config import CONF, checked, judges_of, register
from tasft.errors import UserError
from tasft.paper import published
from tasft.sweep import expand
from tests.test_config import TABLE_4, composed

EXPERIMENTS = [f"table{number}" for number in (1, 2, 3, 5, 6, 7, 8)] + ["figure2", "figure3", "figure4", "lambda_grid"]
TINY = ("model=tiny", "data=tiny")
COUNTS = (1000, 500, 300, 100)
GROUPS = ("experiment", "model", "data", "loss", "benchmark", "judge")


@cache
def grid(experiment, *arguments):
    """The overrides of each cell of `python -m tasft.run -m experiment=<experiment> <arguments>`, as dictionaries."""
    register()
    given = [f"experiment={experiment}", *arguments]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        config = hydra.compose_config("run", given, RunMode.MULTIRUN)
        sweeper = OmegaConf.to_container(config.hydra.sweeper, resolve=False)
        found = expand(sweeper["cells"] or [""], sweeper["params"] or {}, given, config, hydra.config_loader)
    return [dict(override.split("=", 1) for override in overrides) for overrides in found]


@cache
def _chosen(*choices):
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("run", overrides=list(choices))


def config_of(cell):
    """The checked config of a cell: groups by composing, which is slow, then the values, as Hydra does it."""
    config = deepcopy(_chosen(*(f"{key}={value}" for key, value in cell.items() if key in GROUPS)))
    values = [f"{key}={value}" for key, value in cell.items() if key not in GROUPS]
    return checked(OmegaConf.merge(config, OmegaConf.from_dotlist(values)))


def method(config):
    """A cell as the paper's tables name it: method and count."""
    if config.loss.name == "sft" and config.data.safe_answers:
        return "stl", config.data.safe_answers
    return config.loss.name, 0 if config.loss.name == "sft" else config.data.toxic


def asked(cell):
    """The same from a cell's overrides; without a count, what the data's config says."""
    if "data.safe_answers" in cell:
        return "stl", int(cell["data.safe_answers"])
    return cell["loss"], 0 if cell["loss"] == "sft" else int(cell.get("data.toxic", 1000))


@pytest.mark.parametrize("table", ["table1", "table2", "table3", "table6", "table7"])
def test_the_cells_are_those_of_the_papers_table(table):
    found = [(cell["model"], *asked(cell)) for cell in grid(table)]
    wanted = {(cell.model, cell.method, cell.count) for cell in published(table)}
    assert (set(found), len(found)) == (wanted, len(wanted))
    config = config_of(grid(table)[-1])
    assert (config.model.name, *method(config)) == found[-1]
    assert (config.batch_size, config.optimizer.lr, config.data.safe.count) == (96, 1e-4, 20_000)
    assert config.epochs == (4 if config.model.name == "mistral7b" else 3)  # A.2
    assert {cell.benchmark for cell in published(table)} <= {*config.benchmark, *config.tasks.names}
    assert (config.experiment, config.output_root) == (table, "outputs/paper")  # one folder: shared runs


@pytest.mark.parametrize("table", ["table2", "table3"])
def test_every_cell_is_good_and_has_the_weight_of_table_4(table):
    for cell in grid(table):
        config = config_of(cell)
        assert method(config) == asked(cell)
        if config.loss.name in ("emd", "nlcl"):
            at = COUNTS.index(config.data.toxic)
            assert config.loss.weight == TABLE_4[config.loss.name, config.model.name][at]


def test_table_5_is_of_the_runs_of_table_1():
    assert [cell | {"experiment": "table1"} for cell in grid("table5")] == grid("table1")
    assert {"piqa", "openbookqa"} <= set(config_of(grid("table5")[0]).tasks.names)


def test_the_published_weights_are_those_of_table_4():
    assert {(cell.method, cell.model, cell.count): cell.value for cell in published("table4")} == {
        (*of, count): weight for of, weights in TABLE_4.items() for count, weight in zip(COUNTS, weights, strict=True)
    }


def test_table_8_attacks_the_runs_of_table_3():
    of_table_3 = [cell | {"experiment": "table8"} for cell in grid("table3") if cell["model"] == "llama7b"]
    assert grid("table8") == of_table_3
    eight = [config_of(cell) for cell in grid("table8")]
    assert {method(config) for config in eight} == {(cell.method, cell.count) for cell in published("table8")}
    assert list(eight[0].benchmark) == ["advbench_50"]


def test_the_figures_ask_while_the_training_goes_on():
    two, three, four = ([config_of(cell) for cell in grid(name)] for name in ("figure2", "figure3", "figure4"))
    assert [config.loss.name for config in two] == ["kto", "emd", "nlcl"]
    assert [config.data.toxic for config in two] == [1000] * 3
    assert {judge for name in two[0].benchmark for judge in judges_of(two[0], name)} >= {"deberta", "moderation"}
    llama13b = [config for config in three if config.model.name == "llama13b"]
    assert [method(config) for config in llama13b] == [("nlcl", 1000), ("emd", 1000), ("stl", 1000)]
    assert list(three[0].benchmark) == ["xstest_safe", "xstest_unsafe"]
    assert Counter((config.loss.name, config.data.contrastive) for config in four) == {
        ("emd", 0): 1, ("nlcl", 0): 1, ("emd", 3335): 3, ("nlcl", 3335): 3,
    }  # fmt: skip
    emd = sorted(config.loss.weight for config in four if config.loss.name == "emd" and config.data.contrastive)
    # 3,335 more imitated rows at Table 4's share: 0.83 P(20,000) / P(23,335), with P(n) = 1 - C(n, 3) / C(n + 1000, 3)
    assert emd == pytest.approx([0.83 * 0.136169 / 0.118287 * factor for factor in (1, 2, 4)], rel=1e-4)
    for config in (*two, *three, *four):
        assert (config.evaluate.every_n_steps, config.evaluate.at_start) == (50, True)
        assert config.output_root == f"outputs/{config.experiment}"


def test_the_grid_goes_through_multiples_of_table_4_on_prompts_that_no_table_has():
    found = [config_of(cell) for cell in grid("lambda_grid") if cell["model"] == "mistral7b"]
    assert (len(grid("lambda_grid")), len(found)) == (4 * 40, 2 * 4 * 5)
    emd = sorted(config.loss.weight for config in found if (config.loss.name, config.data.toxic) == ("emd", 300))
    assert emd == pytest.approx([1.05 / 4, 1.05 / 2, 1.05, 2.1, 4.2])
    tested = {cell.benchmark for table in ("table1", "table2") for cell in published(table)} | {"xstest_safe"}
    assert not tested & set(found[0].benchmark)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_tiny_world_takes_the_place_of_the_papers(experiment):
    found, models = grid(experiment, *TINY), {cell["model"] for cell in grid(experiment)}
    smaller = {"1000": "50", "500": "25", "300": "15", "100": "5", "3335": "167"}  # a 20th, as are the safe rows
    counts = ("data.toxic", "data.safe_answers", "data.contrastive")
    as_small = [
        {key: smaller.get(value, value) if key in counts else value for key, value in cell.items()}
        | {"model": "tiny", "data": "tiny"}
        for cell in grid(experiment)
        if cell["model"] == min(models)
    ]
    assert found == as_small
    config = config_of(found[-1])
    assert (config.model.name, config.batch_size, config.optimizer.lr) == ("tiny", 33, 1e-3)
    assert all(benchmark.startswith("tiny_") for benchmark in config.benchmark)
    assert (config.harvest.judge, config.tasks.names) == ("oracle", [])
    every = {"figure2": 8, "figure3": 8, "figure4": 8}.get(experiment)
    assert (config.evaluate.every_n_steps, config.evaluate.max_new_tokens) == (every, 64)


def test_choices_on_the_command_line_win_over_the_worlds():
    given = ("loss=emd", "data.toxic=7", "benchmark=[tiny_safe]", "judge=[oracle]", "batch_size=9")
    (cell,) = grid("table2", *TINY, *given)
    config = config_of(cell)
    assert (list(config.benchmark), list(config.judge), config.batch_size) == (["tiny_safe"], ["oracle"], 9)
    assert (config.loss.name, config.data.toxic) == ("emd", 7)


def test_the_factor_is_of_the_tuned_weight_alone():
    assert checked(composed("loss.factor=2", "data.toxic=300")).loss.weight == 8.0
    for key in ("weight", "share"):
        with pytest.raises(UserError, match=rf"loss\.factor=2 is of the tuned λ, but loss\.{key} is given: drop one"):
            checked(composed("loss.factor=2", f"loss.{key}=0.1"))
    assert checked(composed("loss=sft", "loss.factor=2")).loss.weight is None
