import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from tasft.config import CONF, register
from tasft.prepare import prepare
from tasft.report.command import command
from tasft.result.store import read_config
from tests.report.runs import written
from tests.small import SMALL, lay_out


def composed(overrides):
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("run", overrides=list(overrides))


def overrides_of(config):
    """What a shell makes of the command for `config`, but for python -m tasft.run."""
    made = command(config)
    words = shlex.split(made.text)
    assert words[:3] == ["python", "-m", "tasft.run"] and not made.unknown
    return words[3:]


SHORT = [
    ["experiment=demo"],
    ["experiment=demo", "loss=nlcl", "data.toxic=15", "seed=4"],
    ["experiment=demo", "loss=sft", "benchmark=[tiny_seen,tiny_safe]"],
    ["experiment=demo", "loss.share=0.1"],
    ["experiment=demo", "auto.target=2.0", "loss.weight=auto"],
    ["experiment=demo", "optimizer.lr=1e-05", "loss.weight=2.5"],
]


@pytest.mark.parametrize("given", SHORT, ids=" ".join)
def test_a_command_is_as_short_as_the_one_that_was_typed(given):
    assert overrides_of(written(composed(given))) == given


SYSTEM = r'''"Say \"no\", or \\ {a: b}, $HOME and it's done\\"'''
LONG = [
    # λ by experiment and weight by hand, a source of another kind in the data's place, rows chosen by a column's value
    ["experiment=demo", "loss.group=5", "data.toxic=25", "loss.weight=0.7", "judge=[refusal,oracle]"],
    ["data=beavertails", "model=mistral7b", "source@data.safe=alpaca_cleaned", "data.safe.count=300", "loss=sft"],
    ["model=hf", "model.path=a/b", "data=local", "data.safe.path=my rows.jsonl", "data.safe.count=3",
     "data.format=chat", "+data.safe.where={lang: en, kind: 'null'}", f"data.system={SYSTEM}",
     "loss=sft", "benchmark=local", "benchmark.local.source.path=a.json", "benchmark.local.kind=toxic", "epochs=2"],
    ["data=tiny", "model=tiny", "benchmark=tiny_seen", "judge=oracle", "loss.toxic.reduction=mean", "loss.share=0.2",
     "model.lora.targets=[q_proj]", "trainer.max_tokens=512", "+judge.oracle.note=1e3", "data.pretraining=null"],
]  # fmt: skip


@pytest.mark.parametrize("given", LONG, ids=lambda given: given[0])
def test_a_command_gives_the_config_again(given):
    config = written(composed(given))
    again = written(composed(overrides_of(config)))
    assert again == config


def test_a_command_makes_the_same_folder(tmp_path, monkeypatch):
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    cfg = composed([*SMALL, "seed=3", "epochs=1", "optimizer.lr=0.02", "data.harmful=2", "output_root=out"])
    run = prepare(cfg)
    run.folder.path.mkdir(parents=True)
    from tasft.execute import _yaml  # what a run writes

    run.folder.config.write_text(_yaml(run))
    again = prepare(composed(overrides_of(read_config(run.folder.config))))
    assert again.folder.path == run.folder.path
    assert again.folder.path.parent == Path("out/model/sft/toxic0-harmful2")


def test_what_cannot_be_said_is_named():
    config = written(composed(["experiment=demo"]))
    config["judge"] |= {"anna": {"people": True, "outcomes": {}}}  # labels that no command can make again
    config["evaluate"] |= {"temperature": 0.7}
    made = command(config)
    assert made.overrides == ("experiment=demo",)
    assert made.unknown == ("evaluate.temperature",)
