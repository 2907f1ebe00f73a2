"""The configuration: every file fits what it feeds, λ is the paper's, and mistakes are answered in one sentence."""

import errno
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf

from tasft.config import CONF, checked, entry, judges_of, mistake, plain_sft, register, tuned
from tasft.errors import UserError
from tasft.schema import JUDGE_NOTES

MULTI = ("benchmark", "judge")
PLACES = {"source": "source@data.safe", "generator": "generator@contrastive.prompts"}  # groups that fill several places
# the paper's Table 4, as printed: toxic counts 1000, 500, 300, 100
TABLE_4 = {
    ("emd", "llama7b"): (0.83, 1.70, 4.00, 9.00),
    ("emd", "llama13b"): (0.70, 0.99, 2.20, 7.10),
    ("emd", "mistral7b"): (0.50, 0.60, 1.05, 3.10),
    ("emd", "llama3_8b"): (0.49, 0.78, 1.30, 3.80),
    ("nlcl", "llama7b"): (3.80, 4.00, 14.50, 20.00),
    ("nlcl", "llama13b"): (5.50, 12.00, 15.00, 55.00),
    ("nlcl", "mistral7b"): (2.40, 3.40, 5.60, 25.00),
    ("nlcl", "llama3_8b"): (2.50, 3.50, 5.50, 16.00),
}


def composed(*overrides, config="run"):
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(config, overrides=list(overrides))


def targets(node):
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        for value in node.values():
            yield from targets(value)


@pytest.mark.parametrize("file", sorted(CONF.glob("*/*.yaml")), ids=lambda f: f"{f.parent.name}={f.stem}")
def test_every_choice_composes_and_fits_the_signature_that_it_feeds(file, monkeypatch):
    monkeypatch.setenv("TASFT_DATA", "somewhere")
    group, name = file.parent.name, file.stem
    place = PLACES.get(group, group)
    cfg = composed(f"{place}=[{name}]" if group in MULTI else f"{place}={name}")
    found = list(targets(OmegaConf.to_container(cfg, resolve=False)))
    assert found, "not even the loss was found"
    if group == "loss":
        assert cfg.loss.name == name  # the run's folder, and the key of a tuned weight
    for node in found:
        arguments = {k: v for k, v in node.items() if not k.startswith("_") and k not in JUDGE_NOTES}
        inspect.signature(get_object(node["_target_"])).bind_partial(**arguments)


@pytest.mark.parametrize(("loss", "model"), TABLE_4)
def test_weights_are_those_of_table_4(loss, model):
    for count, weight in zip((1000, 500, 300, 100), TABLE_4[loss, model], strict=True):
        cfg = composed(f"model={model}", f"loss={loss}", f"data.toxic={count}")
        assert cfg.loss.weight == weight
        assert checked(cfg).loss.weight == weight


def test_the_papers_hyper_parameters_are_the_defaults():
    config = checked(composed())
    assert (config.batch_size, config.epochs, config.optimizer.lr, config.loss.group) == (96, 3, 1e-4, 3)
    assert (config.data.safe.count, config.data.toxic) == (20_000, 1000)
    lora = config.model.lora
    assert (lora.r, lora.alpha, lora.dropout, lora.targets) == (8, 16, 0.05, ["q_proj", "v_proj"])
    assert checked(composed("model=mistral7b")).epochs == 4


def test_a_source_can_be_put_in_any_place():
    data = checked(composed("source@data.safe=alpaca_cleaned", "source@data.toxic_prompts=hh_red_team")).data
    assert (data.safe.id, data.safe.count) == ("yahma/alpaca-cleaned", 20_000)
    assert data.toxic_prompts.path.endswith("red_team_attempts.jsonl.gz")
    assert (data.toxic_prompts.id, data.toxic_prompts.fields.transcript) == (None, "transcript")


def test_a_benchmark_may_be_several():
    four = composed("benchmark=[harmfulness]").benchmark
    assert {name: benchmark.size for name, benchmark in four.items()} == {
        "i_malicious": 100, "i_cona": 178, "i_controversial": 40, "harmfulq": 200,
    }  # fmt: skip
    assert list(composed("benchmark=[xstest,i_cona,harmfulness]").benchmark)[:3] == [
        "xstest_safe",
        "xstest_unsafe",
        "i_cona",
    ]
    assert list(composed().benchmark) == [*four, "xstest_safe", "xstest_unsafe"]


def test_public_benchmarks_say_how_many_prompts_they_have_and_under_which_licence():
    files = ",".join(sorted(file.stem for file in (CONF / "benchmark").glob("*.yaml")))
    every = composed(f"benchmark=[{files}]").benchmark
    public = {name: benchmark for name, benchmark in every.items() if benchmark.source.rows is None and name != "local"}
    assert len(public) > 15
    for name, benchmark in public.items():
        assert benchmark.size and benchmark.source.licence, name


def test_files_of_repositories_are_those_of_one_commit():
    paths = [path for file in CONF.rglob("*.yaml") for path in re.findall(r"path: (https://\S+)", file.read_text())]
    assert len(paths) > 10
    assert [path for path in paths if not re.search(r"/[0-9a-f]{40}/", path)] == []


def test_judges_fit_a_benchmark_by_kind_by_need_or_because_it_names_them():
    compare = "+judge.compare={_target_: any.where, kinds: [safe, toxic], needs: [reference]}"
    anything = "+judge.anything={_target_: any.where}"
    benchmarks = "benchmark=[i_cona,xstest_safe,i_alpaca,alpaca_eval,tiny_seen]"
    config = checked(composed(benchmarks, "judge=[moderation,oracle,refusal]", compare, anything))
    assert {name: judges_of(config, name) for name in config.benchmark} == {
        "i_cona": ["moderation", "refusal", "anything"],
        "xstest_safe": ["moderation", "refusal", "anything"],
        "i_alpaca": ["refusal", "anything"],
        "alpaca_eval": ["refusal", "compare", "anything"],
        "tiny_seen": ["oracle", "refusal"],
    }


def test_every_judge_says_in_words_that_are_known_where_it_makes_sense():
    judges = sorted(file.stem for file in (CONF / "judge").glob("*.yaml"))
    config = checked(composed(f"judge=[{','.join(judges)}]", "benchmark=[i_cona,xstest,alpaca_eval,tiny_seen]"))
    assert {judge for name in config.benchmark for judge in judges_of(config, name)} == set(config.judge)


def test_stl_is_a_choice_of_data():
    config = checked(composed("data=stl", "loss=sft", "data.safe_answers=300"))
    assert (config.data.safe.count, config.data.safe_answers, config.data.toxic) == (20_000, 300, 0)
    assert "safety_only" in config.data.safe_answers_source.path


def test_every_imitated_row_counts_for_the_share():
    # a group of 1 holds a toxic row with the toxic rows' share of all: 10 of 40, and 10 of 50
    share = ["loss.share=0.1", "loss.group=1", "data.toxic=10", "data.safe.count=30"]
    assert tuned(composed(*share)).weight == pytest.approx(0.4)
    assert tuned(composed(*share, "data.safe_answers=4", "data.harmful=6")).weight == pytest.approx(0.5)
    # 36 unlabelled rows of which a quarter, 9, is flagged: 10 of 37
    flagged = ["data.harmful=6", "data.filter=saft_to_toxic", "saft.quantile=0.25"]
    assert tuned(composed(*share, *flagged)).weight == pytest.approx(0.37)
    assert tuned(composed(*share, *flagged), safe=40).weight == pytest.approx(0.5)


def test_another_group_or_safe_count_keeps_the_cells_share():
    paper = tuned(composed("data.toxic=300"))
    batch = tuned(composed("data.toxic=300", "loss.group=96"))
    assert batch.share == pytest.approx(paper.share)
    # P(3 of 20,300 hold one of 300) = 0.04370, P(96 ...) = 0.76159: 4.00 * 0.04370 / 0.76159 = 0.2295
    assert batch.weight == pytest.approx(0.2295, abs=1e-4)
    fewer = tuned(composed("data.toxic=300", "data.safe.count=2000"))
    assert fewer.share == pytest.approx(paper.share)
    assert fewer.weight < paper.weight  # toxic rows are met more often


def test_a_share_becomes_the_weight_of_the_count():
    cfg = composed("loss.share=0.1", "data.toxic=1", "data.safe.count=2", "loss.group=3")
    assert checked(cfg).loss.weight == pytest.approx(0.1)  # the one group holds the toxic row for sure: P = 1
    cfg = composed("loss.share=0.1", "data.toxic=1", "data.safe.count=3", "loss.group=2")
    assert checked(cfg).loss.weight == pytest.approx(0.2)  # P = 1 - C(3,2)/C(4,2) = 1/2


def test_a_tuned_share_may_be_one_for_each_count():
    shares = "+model.tuned_share={emd_exact: {50: 0.03, 15: 0.1}, kto: 0.5}"
    small = ("data.safe.count=100", "loss.group=1", "model=hf", "model.path=x", "model.name=x", shares)
    assert tuned(composed("loss=emd_exact", "data.toxic=50", *small)).share == 0.03
    cfg = composed("loss=emd_exact", "data.toxic=15", *small)
    assert checked(cfg).loss.weight == pytest.approx(0.1 * 115 / 15)  # one row a group: P = 15/115
    with pytest.raises(UserError, match=r"tuned toxic counts: 50, 15"):
        tuned(composed("loss=emd_exact", "data.toxic=5", *small))
    assert tuned(composed("loss=kto", "data.toxic=5", *small)).share == 0.5  # before the balance of the counts
    with pytest.raises(UserError, match="a share of at least 0, or toxic count: share"):
        checked(composed("loss=kto", *small[:-1], "+model.tuned_share={kto: {5: -1}}"))


def test_kto_weighs_by_the_counts():
    # lambda_D n_D / (lambda_U n_U) = balance with lambda_D = 1: 20,000 / 1,000, and 3/4 of it
    assert checked(composed("loss=kto")).loss.weight == pytest.approx(20.0)
    assert checked(composed("loss=kto", "loss.balance=1.3333333333333333")).loss.weight == pytest.approx(15.0)
    assert checked(composed("loss=kto", "loss.weight=7")).loss.weight == 7
    # every example weighs the same: toxic ones add up to their part of the data, 10 of 40
    assert tuned(composed("loss=kto", "loss.share=0.5", "data.toxic=10", "data.safe.count=30")).weight == 2.0


def test_auto_starts_from_a_share():
    cfg = composed("loss.weight=auto", "auto.share=0.1", "data.toxic=1", "data.safe.count=3", "loss.group=2")
    assert checked(cfg).loss.weight == "auto"
    assert tuned(cfg).weight == pytest.approx(0.2)
    plain = checked(plain_sft(cfg))
    assert (plain.loss.name, plain.loss.weight, plain.data.safe.count) == ("sft", None, 3)


def test_a_given_weight_is_kept_whatever_the_count():
    assert checked(composed("loss.weight=0.7", "data.toxic=123")).loss.weight == 0.7
    assert checked(composed("loss=sft")).loss.weight is None


MISTAKES = {
    "data.toxic=-1": "data.toxic=-1: it should be greater than or equal to 0",
    "data.toxic=abc": "data.toxic: Value 'abc' of type 'str' could not be converted to Integer",
    "data.toxic=0": "loss=emd needs toxic rows: give data.toxic=N, or use loss=sft",
    "loss=foo": "loss=foo: no such choice; there are dpo, emd, emd_exact, grad_ascent, kto, nlcl,",
    "loss=nclc": "did you mean nlcl?",
    "loss.weigth=3": "there is no key loss.weigth: did you mean loss.weight?",
    "+loss.weigth=3": "there is no key loss.weigth: did you mean loss.weight?",
    "loss.weight=-1": "loss.weight=-1: it should be a number of at least 0, or auto",
    "loss.weight=often": "loss.weight=often: it should be a number of at least 0, or auto",
    "loss=dpo loss.weight=auto": "loss.weight=auto follows toxic answers, and loss=dpo is over pairs: give a weight",
    "loss=npo": "no tuned weight for loss=npo model=llama7b data.toxic=1000",
    "loss=dpo loss.share=1 source@data.pairs_source=local": "loss=dpo is over pairs: give data.pairs_source.path",
    "loss.group=0": "loss.group=0: it should be greater than or equal to 1",
    "data.toxic=250": "no tuned weight for loss=emd model=llama7b data.toxic=250 (tuned toxic counts: 1000,",
    "loss=emd_exact": "give loss.weight=λ, or loss.share=s",
    "loss.weight=1 loss.share=0.1": "loss.weight=1 and loss.share=0.1 are both given",
    "model=hf": "model.path is not given",
    "data=local": "data.safe.count is not given",
    "experiment=real_smoke": "benchmark.i_cona.kind has no value: give benchmark.i_cona.kind=..., or drop it:",
    "data.safe.id=null": "data.safe says no place to read from: give data.safe.path=<file>",
    "data.safe.path=none.json": "data.safe.path=none.json: no such file",
    "data.format=foo": "data.format=foo: it should be one of stl, short, chat",
    "data.filter=saft": "data.filter=saft does not know which rows to flag: give saft.quantile=0.1",
    "data.filter=svd": "data.filter=svd: it should be one of saft, saft_to_toxic",
    "data.filter=saft saft.quantile=1": "saft.quantile=1.0: it should be less than 1",
    "data.filter=saft saft.quantile=0.1 saft.threshold=1": "saft.quantile=0.1 and saft.threshold=1 are both given",
    "data.filter=saft_to_toxic loss=sft saft.quantile=0.1": "which loss=sft leaves out: use data.filter=saft",
    "data.filter=saft saft.labelled.safe.path=a.json": "saft.labelled needs both rows known to be safe and rows known",
    "data.contrastive=5 loss=sft data.safe.path=prompts.json": "none at data/contrastive/alpaca/pairs.jsonl: make",
    "data.pretraining={_target_:a.b}": "data.pretraining is null, which takes no mapping on the command line",
    "data=tiny data.harmful_source.path=a.json": "data.harmful_source.path and data.harmful_source.rows are both given",
    "experiment=saft saft.labelled.safe.path=a.json": "saft.labelled.safe.rows=null drops the function",
    "data.contamination.policy=ignore": "data.contamination.policy=ignore: it should be one of report, drop, refuse",
    "data.system=Hi": "data.system needs data.format=chat",
    "judge=[oracle]": "no judge for benchmark i_malicious: it knows ",
    "benchmark.i_malicious.judges=[oracle]": "i_malicious: it knows oracle, but judge=[refusal]; add one to judge=",
    "+judge.refusal.needs=[x]": "judge.refusal.needs=['x']: it should be a list of reference, category",
    "judge.refusal.kinds=safe": "judge.refusal.kinds=safe: it should be a list of toxic, seeming, safe",
    "trainer=gpu": "trainer.accelerator=gpu, but PyTorch finds no GPU: use trainer=cpu",
    "trainer.accelerator=tpu": "trainer.accelerator=tpu: it should be one of auto, cpu, gpu",
    "optimizer.lr": "Error parsing override 'optimizer.lr'",
    "ask.prompt=What's up?": "put the value in quotes of its own, 'ask.prompt=\"...\"'",
    "output_root=/dev/null/x": "cannot write /dev/null/x",
}


@pytest.mark.parametrize("overrides", MISTAKES)
def test_a_mistake_is_one_sentence_and_leaves_nothing_behind(overrides, monkeypatch, tmp_path, capfd):
    local = "benchmark.i_malicious.source.path"  # the defaults' prompts lie on the web
    (tmp_path / "prompts.json").write_text('["What is a fox?"]')
    columns = "benchmark.i_malicious.source.fields={prompt: prompt, category: null}"
    files = ["benchmark=[i_malicious]", f"{local}=prompts.json", columns, "benchmark.i_malicious.size=1"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tasft.run", *files, *overrides.split()])
    from tasft.cell import run_cell

    assert entry(run_cell, "run") == 1
    said = capfd.readouterr().err
    assert MISTAKES[overrides] in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) <= 2
    assert [p.name for p in tmp_path.iterdir()] == ["prompts.json"]


def test_a_bug_is_not_passed_off_as_a_mistake(monkeypatch, capfd):
    def broken(cfg):
        raise KeyError("ours")

    monkeypatch.setattr(sys, "argv", ["tasft.run"])
    assert entry(broken, "run") == 1
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/a/b"),
            "/a/b: permission denied; give yourself access, or",
        ),
        (OSError(errno.EROFS, "Read-only file system", "/a"), "/a: read-only file system; give yourself access, or"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk or a quota is full: make room"),
        (OSError("1024 requested and 40 written"), "the disk or a quota is full: make room"),  # NumPy's
    ],
)
def test_what_the_system_refuses_is_one_sentence(refused, said):
    around = RuntimeError("in the middle of something")
    around.__cause__ = refused
    assert mistake(around).startswith(said)


def command(*arguments, cwd=None):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, check=False)


def test_show_the_config_without_torch(tmp_path):
    shown = command(
        "-X", "importtime", "-m", "tasft.run",
        "model=mistral7b", "loss=nlcl", "data.toxic=300", "--cfg", "job", "--resolve", cwd=tmp_path,
    )  # fmt: skip
    assert shown.returncode == 0
    assert OmegaConf.create(shown.stdout).loss.weight == 5.6
    assert "weight: 5.6" in shown.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in shown.stderr.splitlines()}
    assert "hydra" in imported
    assert not imported & {"torch", "transformers", "lightning", "datasets"}
    assert not list(tmp_path.iterdir())


def test_a_mistake_on_the_command_line_ends_with_code_1_and_no_torch(tmp_path):
    said = command("-X", "importtime", "-m", "tasft.run", "loss.weigth=3", cwd=tmp_path)
    assert said.returncode == 1
    assert "tasft: there is no key loss.weigth: did you mean loss.weight?" in said.stderr
    assert " torch\n" not in said.stderr


def test_checked_config_is_typed():
    config = checked(composed("experiment=demo"))
    assert config.benchmark["tiny_seen"].kind == "toxic"
    assert config.benchmark["tiny_seen"].source.fields.prompt == "prompt"
    with pytest.raises(UserError, match=r"model\.lora\.r=0"):
        checked(composed("model.lora.r=0"))


def test_conf_is_where_the_code_looks_for_it():
    assert CONF == Path(__file__).parent.parent / "conf"
