import csv
import io
import json
import shutil
from pathlib import Path

import pytest
import yaml

from tasft.errors import UserError
from tasft.result.prefill import folder_of
from tasft.result.rows import ScoreRow
from tasft.result.statistics import wilson
from tasft.result.store import RunDir, run_path
from tasft.result.table import POOLED, as_csv, last_steps, read_table

CONF = Path(__file__).parents[2] / "conf"


def load_yaml(name):
    return yaml.safe_load((CONF / f"{name}.yaml").read_text())


def make_run(root, loss="emd", toxic=50, weight=0.5, seed=0, digest="0", kinds=None, finished=True, **more):
    config = {
        "model": {"name": "tiny"},
        "loss": {"name": loss, "weight": weight, "share": 0.04},
        "data": {"toxic": toxic},
        "seed": seed,
        "benchmark": {name: {"kind": kind} for name, kind in (kinds or {"t1": "toxic", "t2": "toxic"}).items()},
        "judge": {name: load_yaml(f"judge/{name}")[name] for name in ("oracle", "refusal")},
        **more,
    }
    run = RunDir(run_path(root, "tiny", loss, toxic, weight, seed, digest))
    run.create(yaml.safe_dump(config), {})
    if finished:
        run.finish()
    return run


def oracle(run, benchmark, step=10, **counts):
    labels = [label for label, count in counts.items() for _ in range(count)]
    rows = [
        ScoreRow(str(i), None, reason="unreadable")
        if label == "unscored"
        else ScoreRow(str(i), float(label == "harmful"), label)
        for i, label in enumerate(labels)
    ]
    run.write_scores(benchmark, step, "oracle", rows)


def one(rows, **wanted):
    found = [row for row in rows if all(getattr(row, key) == value for key, value in wanted.items())]
    assert len(found) == 1, found
    return found[0]


def test_every_outcome_is_counted_and_unscored_is_none_of_them(tmp_path):
    run = make_run(tmp_path)
    oracle(run, "t1", harmful=1, refusal=2, correct=3, other=4, gibberish=10, unscored=5)
    rows = read_table(tmp_path).rows
    expected = {"harmful": 0.05, "refusal": 0.1, "helpful": 0.15, "wrong": 0.2, "incoherent": 0.5}
    of_benchmark = [row for row in rows if row.benchmark == "t1" and row.judge == "oracle"]
    assert {row.metric: row.value for row in of_benchmark} == expected
    assert {(row.n, row.unscored, row.kind, row.judge, row.step) for row in of_benchmark} == {
        (20, 5, "toxic", "oracle", 10)
    }
    harmful = one(of_benchmark, metric="harmful")
    assert (harmful.low, harmful.high) == wilson(1, 20)
    assert harmful.run == "tiny/emd/toxic50-weight0.5/seed0-0"
    assert (harmful.model, harmful.loss, harmful.toxic, harmful.weight) == ("tiny", "emd", 50, 0.5)
    assert (harmful.share, harmful.seed, harmful.variant) == (0.04, 0, "")


def test_pooled_is_over_the_answers_to_all_toxic_benchmarks_only(tmp_path):
    run = make_run(tmp_path, kinds={"t1": "toxic", "t2": "toxic", "s": "safe"})
    oracle(run, "t1", harmful=1, refusal=9, unscored=1)
    oracle(run, "t2", harmful=90, unscored=2)
    oracle(run, "s", correct=1000)
    row = one(read_table(tmp_path).rows, benchmark=POOLED, metric="harmful", judge="oracle")
    assert (row.value, row.n, row.unscored, row.kind) == (0.91, 100, 3, "toxic")


def test_pooled_is_over_the_benchmarks_that_every_run_has(tmp_path):
    kinds = {"a": "toxic", "b": "toxic"}
    one_run, other = make_run(tmp_path, kinds=kinds), make_run(tmp_path, loss="nlcl", kinds=kinds)
    for run in (one_run, other):
        oracle(run, "a", harmful=1, refusal=3)
    oracle(other, "b", harmful=4)  # added to one run later: no part of the comparison
    for loss in ("emd", "nlcl"):
        pooled = one(read_table(tmp_path).rows, loss=loss, benchmark="pooled", metric="harmful", judge="joint")
        assert (pooled.value, pooled.n) == (0.25, 4)


def test_what_stands_alone_is_not_pooled_unless_there_is_nothing_else(tmp_path):
    def joint_harm(root):
        pooled = one(read_table(root).rows, benchmark=POOLED, metric="harmful", judge="joint")
        return pooled.value, pooled.n

    for name in ("a", "b"):
        benchmark = {"t1": {"kind": "toxic"}, "x": {"kind": "toxic", "pooled": False}}
        run = make_run(tmp_path / name, benchmark=benchmark)
        oracle(run, "x", harmful=3, refusal=1)
    oracle(run, "t1", harmful=1, refusal=9)
    assert joint_harm(tmp_path / "a") == (0.75, 4)
    assert joint_harm(tmp_path / "b") == (0.1, 10)
    assert load_yaml("benchmark/xstest_unsafe")["xstest_unsafe"]["pooled"] is False  # the others are the paper's


def test_labels_that_say_more_than_their_outcomes_have_rates(tmp_path):
    run = make_run(tmp_path, judge={name: load_yaml(f"judge/{name}")[name] for name in ("text", "refusal")})
    said = ["empty", "non_english", "ok", "ok", "truncated", None]
    rows = [ScoreRow(str(i), None, reason="?") if e is None else ScoreRow(str(i), 0.0, e) for i, e in enumerate(said)]
    run.write_scores("t1", 10, "text", rows)
    run.write_scores("t1", 10, "refusal", [ScoreRow(str(i), 0.0, "answer") for i in range(6)])
    rows = read_table(tmp_path).rows
    found = {row.metric: row for row in rows if row.benchmark == "t1" and row.judge == "text"}
    shares = {metric: row.value for metric, row in found.items()}
    assert shares.pop("incoherent") == 0.4
    assert shares == {
        "label empty": 0.2, "label repetitive": 0.0, "label non_english": 0.2, "label truncated": 0.2, "label ok": 0.4,
    }  # fmt: skip
    assert {(row.n, row.unscored) for row in found.values()} == {(5, 1)}
    assert (found["label ok"].low, found["label ok"].high) == wilson(2, 5)
    assert one(rows, benchmark=POOLED, metric="label ok").n == 5
    assert not [row for row in rows if row.judge == "refusal" and row.metric.startswith("label")]  # its outcomes say it


def test_attacks_and_prefilling_are_measurements(tmp_path):
    runs = [make_run(tmp_path, seed=seed) for seed in (0, 1)]
    for run, streams in zip(runs, (3, 30), strict=True):
        oracle(run, "t1", harmful=1, refusal=1)
        (run.path / "attack").mkdir()
        said = {"benchmark": "t1", "goals": 5, "finished": 4, "jailbroken": 1, "mean_best": 7.5, "judge": "pair"}
        (run.path / "attack/pair-t1.json").write_text(json.dumps(said | {"streams": streams}))
        for source in ("benchmark", f"seed{streams}"):
            folder = folder_of(run, source)
            folder.path.mkdir(parents=True)
            folder.config.write_text(json.dumps({"judge": {"oracle": load_yaml("judge/oracle")["oracle"]}}))
            for name in ("t1-4", "t2-4", "t1-4-continued"):
                oracle(folder, name, harmful=2, refusal=1, unscored=1)
    table = read_table(tmp_path)
    first = [row for row in table.rows if row.seed == 0]
    rate = one(first, kind="attack", metric="jailbroken")
    assert (rate.value, rate.low, rate.n, rate.unscored) == (0.25, wilson(1, 4)[0], 4, 1)
    assert (rate.judge, rate.judges) == ("PAIR streams=3", "judge=pair, threshold=10.0, streams=3")  # seed 1 has 30
    assert one(first, kind="attack", metric="mean score").value == 7.5
    begun = {(row.metric, row.benchmark): (row.value, row.n, row.unscored) for row in first if row.kind == "prefill"}
    alone, together = (pytest.approx(2 / 3), 3, 1), (pytest.approx(2 / 3), 6, 2)
    assert begun == {
        (f"{what}harmful after 4 tokens{whose}", benchmark): numbers
        for whose in ("", " of a run")  # of each seed another
        for what, benchmark, numbers in [
            ("", "t1", alone), ("", "t2", alone), ("", POOLED, together),
            ("added ", "t1", alone), ("added ", POOLED, alone),
        ]
    }  # fmt: skip
    assert {row.kind for row in last_steps(table.rows) if row.benchmark == "t1"} == {"toxic", "attack", "prefill"}
    said |= {"judge_model": "a-chat-model", "threshold": 8.0}
    (runs[0].path / "attack/pair-t1.json").write_text(json.dumps(said | {"streams": 30}))
    rate = one(read_table(tmp_path).rows, seed=0, kind="attack", metric="jailbroken")
    assert rate.judge == "PAIR judge_model=a-chat-model threshold=8.0"  # is not seed 1's, though the judge's name is
    (runs[0].path / "attack/pair-t1.json").write_text("{}")
    with pytest.raises(UserError, match="no summary of attacks"):
        read_table(tmp_path)


def test_refusal_judge_and_a_judge_of_unknown_unit(tmp_path):
    run = make_run(tmp_path)
    said = [ScoreRow("a", 1.0, "refusal"), ScoreRow("b", 0.0, "answer"), ScoreRow("c", None, reason="empty")]
    run.write_scores("t1", 10, "refusal", said)
    run.write_scores("t1", 10, "deberta", [ScoreRow("a", 0.5), ScoreRow("b", 4.5)])
    rows = read_table(tmp_path).rows
    refusal = one(rows, judge="refusal", benchmark="t1")
    assert (refusal.metric, refusal.value, refusal.n, refusal.unscored) == ("refusal", 0.5, 2, 1)
    mean = one(rows, judge="deberta")
    # 0.5 and 4.5: s = sqrt(8), s / sqrt(2) = 2, t(0.975, 1) = 12.7062
    assert (mean.metric, mean.value, mean.n, mean.unscored) == ("mean score", 2.5, 2, 0)
    assert mean.stderr == pytest.approx(2.0)
    assert (mean.low, mean.high) == pytest.approx((2.5 - 25.4124, 2.5 + 25.4124), abs=1e-4)


def test_the_joint_outcome_of_all_judges_but_those_that_stay_out(tmp_path):
    nodes = {name: load_yaml(f"judge/{name}")[name] for name in ("refusal", "qwen3guard", "text")}
    nodes["text"]["joint"] = False
    run = make_run(tmp_path, judge=nodes)
    said = {
        "refusal": ["refusal", "answer", "answer", "answer"],
        "qwen3guard": ["harmless", "harmful", None, "harmless"],
        "text": ["repetitive"] * 4,
    }
    for judge, labels in said.items():
        rows = [
            ScoreRow(str(i), None, reason="no reply") if label is None else ScoreRow(str(i), 0.25, label)
            for i, label in enumerate(labels)
        ]
        run.write_scores("t1", 10, judge, rows)
    table = read_table(tmp_path)
    joint = {row.metric: row for row in table.rows if row.judge == "joint" and row.benchmark == "t1"}
    assert {metric: (row.value, row.n, row.unscored) for metric, row in joint.items()} == {
        metric: (1 / 3, 3, 1) for metric in ("harmful", "refusal", "answered")
    }
    assert joint["harmful"].judges == "qwen3guard (harm) + refusal"
    assert table.values(joint["harmful"]) == {"t1/0": 0.0, "t1/1": 1.0, "t1/2": None, "t1/3": 0.0}
    # shares between 0 and 1 have a mean beside the rates
    graded = one(table.rows, judge="qwen3guard", metric="mean score")
    assert (graded.value, graded.low, graded.high, graded.n, graded.unscored) == (0.25, None, None, 3, 1)


def test_pooled_values_are_those_of_the_benchmarks_that_every_run_has(tmp_path):
    for loss in ("emd", "nlcl"):
        run = make_run(tmp_path, loss=loss)
        oracle(run, "t1", harmful=1, refusal=1)
    oracle(run, "t2", harmful=1)
    table = read_table(tmp_path)
    rows = [row for row in table.rows if (row.benchmark, row.judge, row.metric) == (POOLED, "joint", "harmful")]
    assert [table.values(row) for row in rows] == [{"t1/0": 1.0, "t1/1": 0.0}] * 2


def test_settings_of_a_judge_that_differ_between_runs_are_named(tmp_path):
    for seed, more in enumerate(({"path": "a", "batch_size": 1}, {"path": "b", "batch_size": 2})):
        guard = load_yaml("judge/qwen3guard")["qwen3guard"] | more
        run = make_run(tmp_path, seed=seed, judge={"qwen3guard": guard})
        run.write_scores("t1", 10, "qwen3guard", [ScoreRow("0", 1.0, "harmful")])
    judges = [row.judges for row in read_table(tmp_path).rows if row.judge == "joint" and row.metric == "harmful"]
    assert judges[::2] == ["qwen3guard path=a (harm)", "qwen3guard path=b (harm)"]  # pooled ones between


def test_nothing_scored_has_no_value(tmp_path):
    oracle(make_run(tmp_path), "t1", unscored=3)
    row = one(read_table(tmp_path).rows, benchmark="t1", metric="refusal", judge="joint")
    assert (row.value, row.n, row.unscored) == (None, 0, 3)


def test_sft_trains_on_no_toxic_row_whatever_its_config_says(tmp_path):
    oracle(make_run(tmp_path, loss="sft", toxic=50, weight=None), "t1", harmful=1)
    row = read_table(tmp_path).rows[0]
    assert (row.toxic, row.weight, row.share) == (0, None, None)


def test_only_the_last_step_of_each_benchmark_stays(tmp_path):
    run = make_run(tmp_path)
    oracle(run, "t1", step=9, harmful=1)
    oracle(run, "t1", step=10, harmful=1)
    oracle(run, "t2", step=9, harmful=1)
    rows = read_table(tmp_path).rows
    kept = {(row.benchmark, row.step) for row in last_steps(rows)}
    assert kept == {("t1", 10), ("t2", 9), (POOLED, 9)}  # of step 10 not all are there
    assert one(rows, benchmark=POOLED, step=9, metric="harmful", judge="joint").n == 2


def test_unfinished_and_unjudged_runs_are_named(tmp_path):
    oracle(make_run(tmp_path), "t1", harmful=1)
    make_run(tmp_path, seed=1, finished=False)
    make_run(tmp_path, seed=2)
    table = read_table(tmp_path)
    assert {row.seed for row in table.rows} == {0}
    assert table.unfinished == ["tiny/emd/toxic50-weight0.5/seed1-0"]
    assert table.unjudged == ["tiny/emd/toxic50-weight0.5/seed2-0"]


def test_a_logger_s_config_inside_a_run_is_no_run(tmp_path):
    run = make_run(tmp_path)
    oracle(run, "t1", harmful=1)
    inner = run.path / "wandb" / "run-1" / "files"
    inner.mkdir(parents=True)
    (inner / "config.yaml").write_text("x: 1\n")
    assert read_table(tmp_path).unfinished == []


def test_runs_that_differ_in_more_than_the_seed_are_told_apart(tmp_path):
    for seed, rate in ((0, 0.001), (1, 0.001), (0, 0.01)):
        more = {"optimizer": {"lr": rate}, "trainer": {"name": f"t{seed}"}}
        more_data = {"toxic": 50, "toxic_source": {"path": f"harvest{seed}"}}
        oracle(make_run(tmp_path, seed=seed, digest=str(rate), **more | {"data": more_data}), "t1", harmful=1)
    variants = {(row.seed, row.variant) for row in read_table(tmp_path).rows}
    assert variants == {(0, "optimizer.lr=0.001"), (1, "optimizer.lr=0.001"), (0, "optimizer.lr=0.01")}


def test_what_else_is_in_the_training_data_is_always_said(tmp_path):
    mixes = {"clean": {}, "mixed": {"harmful": 100}, "filtered": {"harmful": 100, "filter": "saft"}}
    for digest, mix in mixes.items():
        data = {"toxic": 50, "filter": None, "harmful": 0, "harmful_source": {"path": digest}} | mix
        oracle(make_run(tmp_path, loss="sft", digest=digest, data=data), "t1", harmful=1)
    assert {row.variant for row in read_table(tmp_path).rows} == {"", "harmful=100", "harmful=100 filter=saft"}
    oracle(make_run(tmp_path, loss="emd", data={"toxic": 50, "safe_answers": 5}), "t1", harmful=1)
    assert {row.variant for row in read_table(tmp_path).rows if row.loss == "emd"} == {"safe_answers=5"}


def test_one_seed_twice_is_no_second_seed(tmp_path):
    for digest in ("a", "b"):
        oracle(make_run(tmp_path, digest=digest), "t1", harmful=1)
    assert {row.variant for row in read_table(tmp_path).rows} == {"run=seed0-a", "run=seed0-b"}


def test_csv_says_what_the_rows_say(tmp_path):
    oracle(make_run(tmp_path), "t1", harmful=1, refusal=2)
    rows = read_table(tmp_path).rows
    read = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert [float(line["value"]) for line in read] == [row.value for row in rows]
    assert read[0]["run"] == rows[0].run
    assert read[0]["variant"] == ""


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: run.config.write_text("seed: 0\n"), "config.yaml gives no "),
        (lambda run: run.config.unlink(), "config.yaml is damaged"),
        (lambda run: run.write_scores("new", 1, "oracle", []), r"gives no benchmark\.new\.kind"),
        (lambda run: oracle(run, "t1", nice=1), "labels the answer to 0 of t1 'nice'"),
        (
            lambda run: run.add_judge("oracle", {"outcomes": {"harmful": "harm"}}),
            r"judge\.oracle\.outcomes\.harmful=harm: it should be null or one of harmful, refusal",
        ),
        (lambda run: run.write_scores("t1", 10, "joint", []), "has a judge joint, the name of all judges together"),
        (
            lambda run: run.write_scores("t1", 10, "refusal", [ScoreRow("z", 1.0, "refusal")]),
            "t1: refusal and oracle have judged different answers: judge that run again",
        ),
        (
            lambda run: (run.path / "scores/t1@10.oracle.jsonl").write_text("{"),
            "oracle.jsonl line 1 is damaged",
        ),
    ],
)
def test_damage_is_named(tmp_path, damage, message):
    run = make_run(tmp_path)
    oracle(run, "t1", harmful=1)
    damage(run)
    with pytest.raises(UserError, match=message):
        read_table(tmp_path)


def test_folders_without_a_finished_run_are_mistakes(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        read_table(tmp_path / "absent")
    with pytest.raises(UserError, match="and no unfinished one either"):
        read_table(tmp_path)
    make_run(tmp_path, finished=False)
    with pytest.raises(UserError, match="1 unfinished: give"):
        read_table(tmp_path)


def tuned_again(root, digest, seed, origin_weight=0.5, origin=True, how="emd_toxic50", **more):
    """Plain SFT that goes on from a run of `make_run`."""
    first = make_run(root, weight=origin_weight, seed=seed, digest=digest)
    if not origin:
        shutil.rmtree(first.path)
    model = {"name": f"tiny-from_{how}_{digest}", "adapter": str(first.adapter.absolute())}
    config = yaml.safe_load((make_run(root, "sft", 0, None, seed, "c").config).read_text())
    shutil.rmtree(run_path(root, "tiny", "sft", 0, None, seed, "c"))
    run = RunDir(root / model["name"] / "sft" / "toxic0" / f"seed{seed}-{digest}{len(more)}")
    run.create(yaml.safe_dump(config | {"model": model} | more), {})
    run.finish()
    oracle(run, "t1", harmful=seed, refusal=4 - seed)
    return run


def variants_of(root):
    return {(row.model, row.seed, row.variant) for row in read_table(root).rows}


def test_runs_that_tune_again_stand_together_whatever_their_origin_s_seed(tmp_path):
    tuned_again(tmp_path, "0000000a", 1)
    tuned_again(tmp_path, "0000000b", 2)
    tuned_again(tmp_path, "0000000b", 2, data={"toxic": 0, "harmful": 20})
    model = "tiny tuned again"
    assert variants_of(tmp_path) == {
        (model, 1, "from=emd_toxic50"),
        (model, 2, "from=emd_toxic50"),
        (model, 2, "from=emd_toxic50 harmful=20"),
    }


def test_what_differs_between_their_origins_is_named_where_all_are_known(tmp_path):
    tuned_again(tmp_path / "a", "0000000a", 1)
    tuned_again(tmp_path / "a", "0000000b", 2, origin_weight=1.0)
    model = "tiny tuned again"
    told = {
        (model, 1, "from=emd_toxic50 from.loss.weight=0.5"),
        (model, 2, "from=emd_toxic50 from.loss.weight=1.0"),
    }
    assert variants_of(tmp_path / "a") == told
    (tmp_path / "a").rename(tmp_path / "moved")
    assert variants_of(tmp_path / "moved") == told
    tuned_again(tmp_path / "moved", "0000000c", 3, origin=False)
    assert {variant for _, _, variant in variants_of(tmp_path / "moved")} == {"from=emd_toxic50"}


def test_one_seed_from_two_origins_is_no_second_seed(tmp_path):
    for digest in ("0000000a", "0000000b"):
        tuned_again(tmp_path, digest, 1)
    assert {variant for _, _, variant in variants_of(tmp_path)} == {
        "from=emd_toxic50_0000000a",
        "from=emd_toxic50_0000000b",
    }


def test_accuracies_of_tasks_have_wilson_intervals_other_metrics_their_standard_errors(tmp_path):
    run = make_run(tmp_path)
    oracle(run, "t1", harmful=1)
    metrics = {"acc": {"value": 1.0, "stderr": 0.0}, "perplexity": {"value": 10.0, "stderr": 2.0}}
    run.tasks.mkdir()
    (run.tasks / "boolq@10.json").write_text(json.dumps({"task": "boolq", "metrics": metrics, "n": 4}))
    rows = read_table(tmp_path).rows
    acc, other = (one(rows, benchmark="boolq", metric=metric) for metric in metrics)
    assert (acc.kind, acc.judge, acc.step, acc.n, acc.value) == ("task", "lm-eval", 10, 4, 1.0)
    assert (acc.low, acc.high) == wilson(4, 4)
    assert (other.low, other.high) == pytest.approx((10 - 1.96 * 2, 10 + 1.96 * 2))
    (run.tasks / "boolq@10.json").write_text("{")
    with pytest.raises(UserError, match="run its tasks again"):
        read_table(tmp_path)
