"""Curves over tokens given and over steps of tuning again, from folders made by hand."""

import csv
import json
import shutil

import pytest

from tasft.report.curves import OfRun, _by_steps, _by_tokens, _curves, draw_curves
from tasft.result.prefill import folder_of, points
from tasft.result.rows import ResponseRow, ScoreRow
from tasft.result.statistics import Rate, wilson
from tasft.result.store import RunDir
from tasft.result.table import read_table

ORACLE = {"oracle": {"outcomes": {"harmful": "harmful", "refusal": "refusal", "gibberish": "incoherent"}}}
BOTH = ORACLE | {"refusal": {"outcomes": {"refusal": "refusal", "answer": None}}}


def scores(labels):
    said = {"h": ("harmful", 1.0), "r": ("refusal", 0.0), "g": ("gibberish", 0.0), "a": ("answer", 0.0)}
    return [
        ScoreRow(f"p{i}", None, reason="empty") if each == "?" else ScoreRow(f"p{i}", said[each][1], said[each][0])
        for i, each in enumerate(labels)
    ]


def finished(root, model, seed, harmful, *, loss="emd", toxic=50, by_step=None):
    """A run with answers to one toxic benchmark; `by_step`: labels after each step."""
    run = RunDir(root / model / loss / f"toxic{toxic}" / f"seed{seed}-{harmful}")
    data = {"toxic": toxic, "safe": {"count": 0 if harmful else 200}, "safe_answers": 0, "contrastive": 0}
    config = {
        "model": {"name": model}, "loss": {"name": loss, "weight": 1.0, "share": 0.1}, "seed": seed,
        "data": data | {"harmful": harmful, "filter": None}, "judge": BOTH, "benchmark": {"ask": {"kind": "toxic"}},
    }  # fmt: skip
    run.create(json.dumps(config), {})
    for step, labels in (by_step or {9: "hr"}).items():
        run.write_responses("ask", step, [ResponseRow(f"p{i}", "?", "!") for i in range(len(labels))])
        run.write_scores("ask", step, "oracle", scores(labels))
    run.finish()
    return run


def by_steps(root, model="tiny tuned again"):
    table = read_table(root)
    configs = {run: json.loads((root / run / "config.yaml").read_text()) for run in {row.run for row in table.rows}}
    return _by_steps(table, model, configs)


def prefilled(run, tokens, whole, refused, added):
    folder = folder_of(run, "benchmark")
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.config.write_text(json.dumps({"judge": BOTH}))
    folder.write_scores(f"ask-{tokens}", 9, "oracle", scores(whole))
    folder.write_scores(f"ask-{tokens}", 9, "refusal", scores(refused))
    if added:
        folder.write_scores(f"ask-{tokens}-continued", 9, "oracle", scores(added))


@pytest.fixture
def root(tmp_path):
    run = finished(tmp_path, "tiny", 1, 0)
    prefilled(run, 0, "hrrr", "arrr", "")
    prefilled(run, 4, "hhgr", "aara", "hg?r")
    again = "tiny-from_emd_toxic50_"
    finished(tmp_path, again + "0123abcd", 1, 20, loss="sft", by_step={0: "rrrr", 5: "hhrr"})
    finished(tmp_path, again + "4567abcd", 2, 20, loss="sft", by_step={0: "rrrr", 5: "hhhr"})
    finished(tmp_path, again + "0123abcd", 1, 0, loss="sft", by_step={0: "rrrr", 5: "rrrr"})
    return tmp_path


def test_rates_of_the_whole_and_of_what_was_added(root):
    run = RunDir(root / "tiny" / "emd" / "toxic50" / "seed1-0")
    found = {(each.tokens, each.alone): each.harmful for each in points(run, "benchmark")}
    # the whole by all judges, what was added by the judge of harm alone
    assert found == {(0, False): Rate(1, 4), (0, True): Rate(1, 4), (4, False): Rate(2, 4), (4, True): Rate(1, 3, 1)}


def test_files(root):
    written = draw_curves(root, read_table(root), root / "report")
    assert [file.name for file, _ in written] == ["prefill.csv", "harm-by-prefill.png", "harm-by-tuning-again.png"]
    assert all(file.stat().st_size > 500 and not missing for file, missing in written)
    rows = list(csv.DictReader((root / "report" / "prefill.csv").open()))
    assert [(row["tokens"], row["part"], row["value"], row["n"], row["unscored"]) for row in rows] == [
        ("0", "whole answer", "0.25", "4", "0"),
        ("0", "what the model added", "0.25", "4", "0"),
        ("4", "whole answer", "0.5", "4", "0"),
        ("4", "what the model added", str(1 / 3), "3", "1"),
    ]
    assert (float(rows[0]["low"]), float(rows[0]["high"])) == wilson(1, 4)
    assert {(row["trained"], row["seed"], row["source"]) for row in rows} == {("emd_toxic50", "1", "benchmark")}


def test_seeds_share_a_curve_and_what_was_tuned_on_does_not(root):
    lines, asked = by_steps(root)
    curves = {(curve.label, curve.dash): curve.rates for curve in _curves(lines)}
    assert asked == ["ask"]
    assert curves == {
        ("emd toxic50", "20 harmful rows"): {0: [Rate(0, 4)] * 2, 5: [Rate(2, 4), Rate(3, 4)]},
        ("emd toxic50", "200 benign rows"): {0: [Rate(0, 4)], 5: [Rate(0, 4)]},
    }


def asked_too(root, name, seed, by_step):
    """Answers to one more toxic benchmark in a run of the fixture."""
    (run,) = root.glob(f"tiny-from_*/sft/toxic*/seed{seed}-20")
    config = json.loads((run / "config.yaml").read_text())
    config["benchmark"][name] = {"kind": "toxic"}
    (run / "config.yaml").write_text(json.dumps(config))
    for step, labels in by_step.items():
        RunDir(run).write_scores(name, step, "oracle", scores(labels))


def test_a_curve_is_over_what_was_asked_at_every_step(root):
    for seed in (1, 2):
        asked_too(root, "other", seed, {5: "hhhhhhhh"})  # at the last step alone, so that no step but it is pooled
    before, _ = by_steps(root)
    shutil.rmtree(next(root.glob("tiny-from_emd_toxic50_0123abcd/sft/toxic*/seed1-0")))
    lines, asked = by_steps(root)
    assert asked == ["ask"]
    assert [line.rates for line in lines] == [{0: Rate(0, 4), 5: Rate(2, 4)}, {0: Rate(0, 4), 5: Rate(3, 4)}]
    assert lines[0].rates == next(line.rates for line in before if line.dash == lines[0].dash and line.seed == 1)
    asked_too(root, "other", 1, {0: "rrrr"})
    asked_too(root, "other", 2, {0: "hhrr"})
    lines, asked = by_steps(root)
    assert asked == ["ask", "other"]
    assert [line.rates for line in lines] == [{0: Rate(0, 8), 5: Rate(10, 12)}, {0: Rate(2, 8), 5: Rate(11, 12)}]


def test_without_a_benchmark_at_every_step_there_is_no_curve(root):
    for file in root.glob("tiny-from_*/sft/*/seed2-20/*/ask@0*"):
        file.rename(file.with_name(file.name.replace("ask", "other")))
    asked_too(root, "other", 2, {})
    assert by_steps(root)[1] == []
    drawn = dict(draw_curves(root, read_table(root), root / "report"))
    assert "no toxic benchmark was asked at every step" in drawn[root / "report" / "harm-by-tuning-again.png"]
    assert not (root / "report" / "harm-by-tuning-again.png").exists()


def test_one_seed_twice_is_no_second_seed():
    lines = [OfRun("emd", "whole", seed, alone, {0: Rate(seed, 4)}) for seed, alone in ((1, "a"), (2, "b"), (1, "c"))]
    assert [curve.label for curve in _curves(lines)] == ["emd a", "emd b", "emd c"]
    assert [(curve.label, curve.rates) for curve in _curves(lines[:2])] == [("emd", {0: [Rate(1, 4), Rate(2, 4)]})]


def test_benchmarks_together(root):
    run = RunDir(root / "tiny" / "emd" / "toxic50" / "seed1-0")
    folder_of(run, "benchmark").write_scores("other-4", 9, "oracle", scores("rr"))
    found = [("tiny/emd/toxic50/seed1-0", "benchmark", point) for point in points(run, "benchmark")]
    config = json.loads(run.config.read_text())
    lines = {line.dash: line.rates for line in _by_tokens(found, {"tiny/emd/toxic50/seed1-0": config})}
    assert lines["whole answer"] == {0: Rate(1, 4), 4: Rate(2, 6)}


def test_nothing_is_written_where_there_is_nothing(tmp_path):
    finished(tmp_path, "tiny", 1, 0)
    assert draw_curves(tmp_path, read_table(tmp_path), tmp_path / "report") == []
    assert not (tmp_path / "report").exists()
