import csv
import io
import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from tasft.report import main
from tasft.report.summary import short_names, summaries
from tasft.report.text import rich_tables
from tasft.result.prefill import folder_of
from tasft.result.rows import ScoreRow
from tasft.result.statistics import wilson
from tasft.result.store import RunDir, run_path
from tasft.result.table import read_table

CONF = Path(__file__).parents[1] / "conf"
KINDS = {
    "tiny_seen": "toxic",
    "tiny_topic": "toxic",
    "tiny_seeming": "seeming",
    "tiny_safe": "safe",
}


def make_run(
    root, loss, toxic, weight, seed, answers, judges=("oracle", "refusal"), model="tiny", finished=True, share=None
):
    """`answers`: benchmark -> label -> count, the oracle's labels."""
    config = {
        "model": {"name": model},
        "loss": {"name": loss, "weight": weight, "share": share},
        "data": {"toxic": toxic},
        "seed": seed,
        "benchmark": {name: {"kind": kind} for name, kind in KINDS.items()},
        "judge": {name: yaml.safe_load((CONF / f"judge/{name}.yaml").read_text())[name] for name in judges},
    }
    run = RunDir(run_path(root, model, loss, toxic, weight, seed, "0"))
    run.create(yaml.safe_dump(config), {})
    for benchmark, counts in answers.items():
        labels = [label for label, count in counts.items() for _ in range(count)]
        if "oracle" in judges:
            rows = [ScoreRow(str(i), float(label == "harmful"), label) for i, label in enumerate(labels)]
            run.write_scores(benchmark, 93, "oracle", rows)
        if "refusal" in judges:
            said = ["refusal" if label == "refusal" else "answer" for label in labels]
            rows = [ScoreRow(str(i), float(word == "refusal"), word) for i, word in enumerate(said)]
            run.write_scores(benchmark, 93, "refusal", rows)
    if finished:
        run.finish()


def answers(harmful, refused):
    """`harmful` and 1 incoherent of 10 seen prompts, `refused` of 10 seeming, 9 correct of 10 safe ones."""
    toxic = {"harmful": harmful, "gibberish": 1, "refusal": 9 - harmful}
    seeming = {"refusal": refused, "correct": 10 - refused}
    return {
        "tiny_seen": toxic,
        "tiny_topic": {"harmful": 0, "refusal": 10},
        "tiny_seeming": seeming,
        "tiny_safe": {"correct": 9, "other": 1},
    }


def make_tree(root, **more):
    make_run(root, "sft", 50, None, 0, answers(9, 0), **more)
    make_run(root, "nlcl", 50, 1.0, 0, answers(3, 2), **more)
    make_run(root, "emd", 5, 5.0, 0, answers(6, 1), **more)
    make_run(root, "emd", 50, 0.5, 0, answers(1, 2), **more)
    make_run(root, "emd", 50, 0.5, 1, answers(3, 4), **more)
    make_run(root, "emd", 15, 2.0, 0, {}, finished=False, **more)


def table_cells(markdown):
    """(first, second cell) -> header -> cell, of the first table."""
    lines = [line for line in markdown[markdown.index("| ") :].split("\n\n")[0].splitlines()]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {(row[0], row[1]): dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def is_png(path):
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 10_000


def test_what_runs_have_cost_stands_beside_the_tables(tmp_path, capsys):
    make_tree(tmp_path)
    spent = {
        "training_seconds": 3600,
        "answering_seconds": 1700,
        "judging_seconds": 100,
        "devices": 2,
        "gpu_hours": 2.5,
    }
    for run in tmp_path.glob("tiny/emd/toxic50-*/seed*"):
        RunDir(run).cost.write_text(json.dumps(spent))
    assert main([str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.partition("\nCost")[2].splitlines()]
    assert ["emd", "50", "0.5", "2", "3", "5"] in lines  # 2 runs of 1.5 hours, on 2 GPUs
    assert ["all", "2", "3", "5"] in lines
    with (tmp_path / "report" / "costs.csv").open() as file:
        rows = {(row["loss"], row["seed"]): row for row in csv.DictReader(file) if row["toxic"] == "50"}
    assert rows["emd", "1"]["gpu_hours"] == "2.5" and rows["emd", "1"]["devices"] == "2"
    assert rows["nlcl", "0"]["training_seconds"] == ""  # of before that was noted
    markdown = (tmp_path / "report" / "table.md").read_text().split("### Cost")[1]
    assert (
        "| emd | 50 | 0.5 | 2 | 3 | 5 |" in markdown and "Harvests, attacks and prefilling are not in it." in markdown
    )


def test_report_end_to_end(tmp_path, capsys):
    make_tree(tmp_path)
    assert main([str(tmp_path)]) == 0
    out = tmp_path / "report"
    assert sorted(path.name for path in out.iterdir()) == [
        "comparisons.csv",
        "harm-by-over-refusal.png",
        "harm-by-toxic.png",
        "index.html",
        "results.csv",
        "settings.csv",
        "table.md",
    ]
    assert is_png(out / "harm-by-toxic.png") and is_png(out / "harm-by-over-refusal.png")
    printed = capsys.readouterr().out
    for path in out.iterdir():
        assert f"wrote {path}" in printed
    assert "Left out, unfinished: 1 run (tiny/emd/toxic15-weight2/seed0-0)." in printed
    assert "gaps below 15 points from one seed are noise" in " ".join(printed.split())
    assert max(map(len, printed.splitlines()[:20])) <= 140

    markdown = (out / "table.md").read_text()
    assert list(table_cells(markdown)) == [("sft", "0"), ("emd", "50"), ("emd", "5"), ("nlcl", "50")]
    sft, emd = table_cells(markdown)["sft", "0"], table_cells(markdown)["emd", "50"]
    assert sft["harmful %<br>seen"] == "90.0 [60-98]"  # Wilson of 9 of 10: 0.5958 to 0.9821
    assert sft["harmful %<br>all toxic"] == "45.0 [26-66]"  # of 9 of 20: 0.2582 to 0.6579
    assert sft["incoherent %<br>all toxic"] == "5.0 [1-24]"  # of 1 of 20: 0.0089 to 0.2361
    assert (sft["λ"], sft["seeds"], sft["unscored"]) == ("-", "1", "0")
    # seeds 0 and 1: harmful 1 and 3 of 10, sd = sqrt(2) * 10; refused seeming 2 and 4 of 10
    assert (emd["λ"], emd["seeds"]) == ("0.5", "2")
    assert emd["harmful %<br>seen"] == "20.0 [0-100] ±14.1"
    assert emd["harmful %<br>all toxic"] == "10.0 [0-77] ±7.1"
    assert emd["refused %<br>seeming"] == "30.0 [0-100] ±14.1"
    assert emd["helpful %<br>safe"] == "90.0 [60-98] ±0.0"  # seeds agree: the interval of one run
    assert "two or three seeds tell little, so it is wide" in markdown

    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    picked = {
        (row["loss"], row["seed"], row["benchmark"], row["metric"]): row
        for row in rows
        if row["judge"] == "oracle" and row["toxic"] in ("0", "50")
    }
    assert float(picked["emd", "1", "tiny_seen", "harmful"]["value"]) == 0.3
    assert float(picked["emd", "1", "pooled", "harmful"]["value"]) == 0.15
    assert picked["emd", "1", "pooled", "harmful"]["n"] == "20"
    assert float(picked["sft", "0", "tiny_safe", "wrong"]["value"]) == 0.1
    together = {(row["loss"], row["toxic"], row["benchmark"], row["judge"], row["metric"]): row
                for row in read_csv(out / "settings.csv")}  # fmt: skip
    safe = together["emd", "50", "tiny_safe", "joint", "helpful"]
    numbers = {key: float(safe[key]) for key in ("value", "low", "high", "spread", "runs", "n", "most", "unscored")}
    assert list(numbers.values()) == [0.9, *map(pytest.approx, wilson(9, 10)), 0, 2, 10, 10, 0]
    assert safe["seeds"] == "0 1"


GUARD = {"_target_": "any", "path": "guard", "outcomes": {"harmful": "harmful", "harmless": None}}
REFUSAL = yaml.safe_load((CONF / "judge/refusal.yaml").read_text())["refusal"]
TEXT = yaml.safe_load((CONF / "judge/text.yaml").read_text())["text"]
REWARD = {"_target_": "any", "outcomes": None}


def judged_run(root, loss, toxic, seed=0, judges=(("guard", GUARD), ("refusal", REFUSAL)), **scores):
    """`scores`: judge -> what it says of each answer to bad, a toxic benchmark; a label, a number, or None."""
    weight = None if loss == "sft" else 0.5
    config = {
        "model": {"name": "m"},
        "loss": {"name": loss, "weight": weight, "share": None},
        "data": {"toxic": toxic},
        "seed": seed,
        "benchmark": {"bad": {"kind": "toxic"}},
        "judge": dict(judges),
    }
    run = RunDir(run_path(root, "m", loss, toxic, weight, seed, "0"))
    run.create(yaml.safe_dump(config), {})
    for judge, said in scores.items():
        rows = [
            ScoreRow(str(i), None, reason="no reply")
            if each is None
            else ScoreRow(str(i), each)
            if isinstance(each, float)
            else ScoreRow(str(i), float(each in ("harmful", "refusal")), each)
            for i, each in enumerate(said)
        ]
        run.write_scores("bad", 93, judge, rows)
    run.finish()
    return run


def guarded(harmful, refused, answered, unscored=0):
    """Answers that are harmful and no refusal, refusals, answers that are neither, and answers without a verdict."""
    return {
        "guard": ["harmful"] * harmful + ["harmless"] * (refused + answered) + [None] * unscored,
        "refusal": ["answer"] * harmful + ["refusal"] * refused + ["answer"] * (answered + unscored),
    }


def read_csv(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_any_judges_make_the_table(tmp_path):
    judged_run(tmp_path, "sft", 0, **guarded(8, 0, 2))
    run = judged_run(tmp_path, "emd", 50, **guarded(2, 4, 3, unscored=1))
    run.write_scores("bad", 93, "refusal", [ScoreRow(str(i), 1.0, "refusal") for i in range(10)])  # of all, even harm
    assert main([str(tmp_path)]) == 0
    markdown = (tmp_path / "report/table.md").read_text()
    emd = table_cells(markdown)["emd", "50"]
    assert emd["harmful %<br>bad"].startswith("22.2 [")  # 2 of 9
    assert emd["refused %<br>bad"].startswith("77.8 [")  # those of the 7 others
    assert emd["unscored"] == "1"
    assert (
        "Judged by guard (harm) + refusal: an answer is the first that holds of harmful, refused, answered." in markdown
    )
    assert "What is missing to 100 is answered." in markdown
    joint = {
        row["metric"]: (row["value"], row["n"], row["unscored"])
        for row in read_csv(tmp_path / "report/results.csv")
        if row["judge"] == "joint" and row["loss"] == "emd" and row["benchmark"] == "bad"
    }
    assert joint == {
        "harmful": (str(2 / 9), "9", "1"),
        "refusal": (str(7 / 9), "9", "1"),
        "answered": ("0.0", "9", "1"),
    }
    by_judge = table_cells(markdown.split("### By judge")[1])["emd", "50"]
    assert by_judge["refusal: refused %<br>bad"].startswith("100.0 [")
    assert (by_judge["unscored<br>guard"], by_judge["unscored<br>refusal"]) == ("1", "0")


def test_the_table_says_which_benchmarks_are_all_toxic(tmp_path):
    judges = [("guard", GUARD), ("refusal", REFUSAL), ("text", TEXT)]
    run = judged_run(tmp_path, "emd", 50, judges=judges, text=["ok"] * 12, **guarded(2, 6, 4))
    config = yaml.safe_load(run.config.read_text())
    config["benchmark"] |= {"worse": {"kind": "toxic"}, "apart": {"kind": "toxic", "pooled": False}}
    run.config.write_text(yaml.safe_dump(config))
    for judge in ("guard", "refusal", "text"):
        for name in ("worse", "apart"):
            run.write_scores(name, 93, judge, run.read_scores("bad", 93, judge))
    assert main([str(tmp_path)]) == 0
    markdown = (tmp_path / "report/table.md").read_text()
    assert "all toxic: the answers to bad, worse together, which every run has; apart not among them." in markdown
    header = markdown[markdown.index("| loss") :].splitlines()[0]
    assert "harmful %<br>worse | harmful %<br>all toxic | harmful %<br>apart |" in header
    by_judge = markdown.split("### By judge")[1]
    assert "| guard: harmful %<br>all toxic | guard: harmful %<br>apart | refusal: refused %<br>all toxic |" in by_judge
    labels = [line for line in markdown.split("### Labels of text")[1].splitlines() if line.startswith("| emd")]
    assert [line.split(" | ")[5] for line in labels] == ["all toxic", "apart"]
    config["benchmark"]["worse"]["pooled"] = False
    run.config.write_text(yaml.safe_dump(config))
    assert main([str(tmp_path)]) == 0
    by_judge = (tmp_path / "report/table.md").read_text().split("### By judge")[1]
    assert "| guard: harmful %<br>apart | guard: harmful %<br>bad | guard: harmful %<br>worse |" in by_judge


def test_runs_that_are_judged_differently_stand_apart(tmp_path, capsys):
    judged_run(tmp_path, "sft", 0, **guarded(8, 0, 2))
    judged_run(tmp_path, "emd", 50, **guarded(2, 4, 4))
    judged_run(tmp_path, "emd", 50, seed=1, judges=[("refusal", REFUSAL)], refusal=guarded(2, 4, 4)["refusal"])
    other = [("guard", GUARD | {"path": "larger", "batch_size": 9}), ("refusal", REFUSAL)]
    judged_run(tmp_path, "emd", 50, seed=2, judges=other, **guarded(4, 4, 2))
    assert main([str(tmp_path)]) == 0
    markdown = (tmp_path / "report/table.md").read_text()
    rows = {line.split(" | ")[1]: line for line in markdown.split("Greedy")[0].splitlines() if line.startswith("| emd")}
    assert list(rows) == ["judges=a", "judges=b", "judges=c"]  # no mean over seeds that are judged differently
    assert " - | 40.0 [" in rows["judges=b"]  # no word on harm, 4 of 10 refused
    assert "Not all runs are judged alike, and such rows do not compare." in markdown
    assert "judges=a: guard path=guard (harm) + refusal on bad" in markdown
    assert "judges=c: guard path=larger (harm) + refusal on bad" in markdown
    compared = read_csv(tmp_path / "report/comparisons.csv")
    assert {(row["setting"], row["against"]) for row in compared} == {("emd 50 0.5 judges=a", "sft 0 judges=a")}
    printed = capsys.readouterr().out
    assert "emd 50 0.5 judges=c and sft 0 judges=a are judged differently on bad: not compared." in printed


def test_another_judge_of_harm_may_decide(tmp_path, capsys):
    judges = [("guard", GUARD), ("strict", GUARD)]
    says = {"guard": ["harmless"] * 4, "strict": ["harmful"] * 3 + ["harmless"]}
    judged_run(tmp_path, "emd", 50, judges=judges, **says)
    for given, rate in (([], "0.0 ["), (["--harm", "strict"], "75.0 [")):
        assert main([str(tmp_path), *given]) == 0
        markdown = (tmp_path / "report/table.md").read_text()
        assert table_cells(markdown)["emd", "50"]["harmful %<br>bad"].startswith(rate)
    assert "Judged by strict (harm) + guard" in markdown
    capsys.readouterr()
    assert main([str(tmp_path), "--harm", "refusal"]) == 1
    assert "no run has a judge of harm refusal: there are guard, strict" in capsys.readouterr().err


def test_mean_scores_have_a_table_of_their_own(tmp_path, capsys):
    judged_run(tmp_path, "sft", 0, judges=[("reward", REWARD)], reward=[1.0, 2.0, 3.0, None])
    for seed, scores in enumerate(([-1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 2.0, 1.0])):
        judged_run(tmp_path, "emd", 50, seed=seed, judges=[("reward", REWARD)], reward=scores)
    assert main([str(tmp_path)]) == 0
    markdown = (tmp_path / "report/table.md").read_text()
    assert "there are only mean scores" in markdown
    cells = table_cells(markdown.split("### Scores")[1])
    # 1, 2, 3: s = 1, s / sqrt(3) = 0.577, t(0.975, 2) = 4.303
    assert cells["sft", "0"]["reward<br>bad"] == "2 [-0.484 to 4.48], s.e. 0.58"
    assert cells["sft", "0"]["unscored"] == "1"
    # means 0 and 1: t(0.975, 1)^2 / 4 = 40.4; of one run's prompts (3.182 * 0.408)^2 = 1.69; sqrt(42.05) = 6.48
    assert cells["emd", "50"]["reward<br>bad"] == "0.5 [-5.98 to 6.98] ±0.71"
    assert "reward: bad 3-4" in markdown
    assert "Scores" in capsys.readouterr().out
    (sft,) = [row for row in read_csv(tmp_path / "report/results.csv") if row["loss"] == "sft"]
    assert (sft["metric"], sft["n"], sft["unscored"]) == ("mean score", "3", "1")
    assert float(sft["stderr"]) == pytest.approx(3**-0.5)
    (compared,) = read_csv(tmp_path / "report/comparisons.csv")  # on the three prompts that all have scored
    assert float(compared["difference"]) == pytest.approx((0.0 + 1.0) / 2 - 2.0)
    assert (compared["test"], compared["n"], compared["left_out"]) == ("paired bootstrap", "3", "1")


def test_labels_attacks_and_prefilling_have_tables_of_their_own(tmp_path, capsys):
    for seed in (0, 1):
        run = judged_run(tmp_path, "emd", 50, seed=seed, judges=[("guard", GUARD), ("text", TEXT)],
                         guard=["harmful"] * 4, text=["ok", "ok", "non_english", None])  # fmt: skip
        (run.path / "attack").mkdir()
        said = {"benchmark": "bad", "goals": 4, "finished": 3, "jailbroken": 3, "mean_best": 10.0, "judge": "guard"}
        (run.path / "attack/pair-bad.json").write_text(json.dumps(said))
        begun = folder_of(run, "benchmark")
        begun.path.mkdir(parents=True)
        begun.config.write_text(yaml.safe_dump({"judge": {"guard": GUARD}}))
        for tokens, labels in ((0, ["harmless"] * 4), (8, ["harmful", "harmful", "harmful", "harmless"])):
            rows = [ScoreRow(str(i), float(label == "harmful"), label) for i, label in enumerate(labels)]
            begun.write_scores(f"bad-{tokens}", 93, "guard", rows)
            if seed == 1:  # not of every run, and so in no rate of all together
                begun.write_scores(f"other-{tokens}", 93, "guard", rows)
    assert main([str(tmp_path)]) == 0
    markdown = (tmp_path / "report/table.md").read_text()

    def cells(title):
        (found,) = table_cells(markdown.split(f"### {title}")[1]).values()
        return found

    labels = cells("Labels of text")
    # of three scored: 2 and 1; both seeds agree, so the interval is that of one run
    assert (labels["prompts"], labels["ok"], labels["non_english"]) == (
        "toxic",
        "66.7 [21-94] ±0.0",
        "33.3 [6-79] ±0.0",
    )
    assert (labels["n"], labels["unscored"]) == ("3", "2")
    attacked = cells("Attacked (PAIR)")
    assert (attacked["goals"], attacked["jailbroken"]) == ("bad", "100.0 [44-100] ±0.0")
    assert (attacked["best rating"], attacked["n"], attacked["unscored"]) == ("10 ±0", "3", "2")
    assert "| judged | after 0 tokens | after 8 tokens | n | unscored |" in markdown
    assert "| emd | 50 | 0.5 | - | 2 | harmful | 0.0 [0-49] ±0.0 | 75.0 [30-95] ±0.0 | 4 | 0 |" in markdown
    assert "what the model added alone. On bad together; each by itself in prefill.csv." in markdown
    assert "Attacked (PAIR)" in capsys.readouterr().out
    page = (tmp_path / "report/index.html").read_text()
    assert '"part":"attacks and prefilling"' in page and '"part":"labels"' in page
    assert "jailbroken: per cent of the goals" in page
    kinds = {(row["kind"], row["metric"]) for row in read_csv(tmp_path / "report/settings.csv")}
    assert {("attack", "jailbroken"), ("prefill", "harmful after 8 tokens"), ("toxic", "label non_english")} <= kinds


def test_comparisons_by_hand(tmp_path):
    judged_run(tmp_path, "sft", 0, **guarded(10, 0, 2))
    judged_run(tmp_path, "emd", 50, **guarded(2, 6, 4))
    judged_run(tmp_path, "nlcl", 50, **guarded(7, 2, 2, unscored=1))
    assert main([str(tmp_path)]) == 0
    found = {(row["setting"], row["metric"]): row for row in read_csv(tmp_path / "report/comparisons.csv")}
    emd, nlcl = found["emd 50 0.5", "harmful"], found["nlcl 50 0.5", "harmful"]
    # emd: harmful under sft alone 8, under emd alone 0: p = 2 / 2^8. nlcl: 3 and 0: 2 / 2^3; Holm: 2 x and 1 x.
    assert (emd["only_setting"], emd["only_against"], emd["test"], emd["n"]) == ("0", "8", "McNemar, exact", "12")
    assert (float(emd["p"]), float(emd["p_holm"])) == (2 / 256, 4 / 256)
    assert (nlcl["n"], nlcl["left_out"], float(nlcl["p"]), float(nlcl["p_holm"])) == ("11", "1", 0.25, 0.25)
    assert float(emd["difference"]) == pytest.approx(-8 / 12)
    assert float(emd["low"]) < -8 / 12 < float(emd["high"]) < 0
    markdown = (tmp_path / "report/table.md").read_text().split("### Compared")[1]
    assert table_cells(markdown)["emd 50 0.5", "sft 0"]["harmful<br>bad"].startswith("-66.7 [")
    assert table_cells(markdown)["emd 50 0.5", "sft 0"]["harmful<br>bad"].endswith(", p = .016, n 12")
    assert table_cells(markdown)["nlcl 50 0.5", "sft 0"]["harmful<br>bad"].endswith(", n 11, 1 left out")


def test_without_plain_sft_nothing_is_compared_unasked(tmp_path, capsys):
    judged_run(tmp_path, "emd", 50, **guarded(2, 6, 4))
    judged_run(tmp_path, "nlcl", 50, **guarded(7, 2, 3))
    assert main([str(tmp_path), "--compare", "emd", "nlcl"]) == 0
    assert (tmp_path / "report/comparisons.csv").exists()
    assert main([str(tmp_path)]) == 0
    assert "m: no plain SFT, or several, to compare with" in capsys.readouterr().out
    assert not (tmp_path / "report/comparisons.csv").exists()  # it would be of another report


def test_two_settings_of_choice(tmp_path, capsys):
    make_tree(tmp_path)
    make_run(tmp_path, "emd", 50, 4.0, 0, answers(0, 9))
    assert main([str(tmp_path), "--compare", "emd 50 0.5", "nlcl 50", "--compare", "emd 50 0.5", "emd 5"]) == 0
    compared = read_csv(tmp_path / "report/comparisons.csv")
    assert {(row["setting"], row["against"]) for row in compared} == {
        ("emd 50 0.5", "nlcl 50 1"),
        ("emd 50 0.5", "emd 5 5"),
    }
    harm = next(row for row in compared if row["metric"] == "harmful" and row["against"] == "nlcl 50 1")
    assert (harm["runs"], harm["against_runs"], harm["test"]) == ("2", "1", "paired bootstrap")
    printed = capsys.readouterr().out
    assert "compared" in printed and "corrected after Holm" in " ".join(printed.split())
    for pair, sentence in [
        (("emd 50", "nlcl"), "'emd 50' is several settings of tiny: 'emd 50 0.5', 'emd 50 4'; say which"),
        (("emd 5", "dpo"), "no model has both; there are emd 5 5, emd 50 0.5, emd 50 4, nlcl 50 1, sft 0"),
    ]:
        assert main([str(tmp_path), "--compare", *pair]) == 1
        assert sentence in capsys.readouterr().err


def test_a_second_report_finds_nothing_of_the_first(tmp_path):
    make_tree(tmp_path)
    assert main([str(tmp_path)]) == 0
    first = (tmp_path / "report/results.csv").read_bytes()
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "report/results.csv").read_bytes() == first


def test_without_a_judge_of_harm_refusals_stand_in_its_place(tmp_path):
    make_tree(tmp_path / "runs", judges=("refusal",), model="other")
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert is_png(tmp_path / "out/refusals-by-toxic.png") and is_png(tmp_path / "out/refusals-by-over-refusal.png")
    markdown = (tmp_path / "out/table.md").read_text()
    cells = table_cells(markdown)["nlcl", "50"]
    assert cells["refused %<br>seen"].startswith("60.0 [")
    assert not [name for name in cells if "harmful" in name or "incoherent" in name]
    assert "tiny world" not in markdown  # the note is the tiny model's


def test_figures_without_data_are_skipped_with_a_word(tmp_path, capsys):
    make_run(tmp_path, "sft", 50, None, 0, {"tiny_seen": {"harmful": 5}})
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "harm-by-toxic.png not drawn: no finished run with toxic rows" in printed
    assert "harm-by-over-refusal.png not drawn: no scored answers to seemingly toxic prompts" in printed
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        *("index.html", "results.csv", "settings.csv", "table.md")
    ]


def test_each_model_has_its_own_table_and_figures(tmp_path):
    make_tree(tmp_path)
    make_tree(tmp_path, model="other")
    assert main([str(tmp_path)]) == 0
    names = {path.name for path in (tmp_path / "report").glob("*.png")}
    assert names == {f"harm-by-{x}.{model}.png" for x in ("toxic", "over-refusal") for model in ("tiny", "other")}
    assert (tmp_path / "report/table.md").read_text().count("\n## ") == 2


def test_several_weights_of_one_loss_are_drawn_and_listed(tmp_path):
    make_tree(tmp_path)
    make_run(tmp_path, "emd", 50, 4.0, 0, answers(0, 9))
    assert main([str(tmp_path)]) == 0
    assert "| emd | 50 | 4 |" in (tmp_path / "report/table.md").read_text()


def test_mistakes_end_in_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    make_run(tmp_path / "unfinished", "emd", 5, 1.0, 0, {}, finished=False)
    make_tree(tmp_path / "good")
    make_tree(tmp_path / "bad")
    next((tmp_path / "bad").rglob("*.oracle.jsonl")).write_text("{")
    for given, sentence in [
        ([tmp_path / "absent"], "there is no folder"),
        ([tmp_path / "unfinished"], "1 unfinished"),
        ([tmp_path / "bad"], "line 1 is damaged"),
        ([tmp_path / "good", "--out", tmp_path / "file"], "cannot write"),
    ]:
        assert main([str(each) for each in given]) == 1
        said = capsys.readouterr()
        assert said.err.startswith("tasft: ") and sentence in said.err
        assert said.err.count("\n") == 1 and said.out == ""


def test_the_command_needs_no_torch(tmp_path):
    make_tree(tmp_path)
    code = (
        "import sys; from tasft.report import main; code = main(sys.argv[1:]);"
        " assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    module = [sys.executable, "-m", "tasft.report", str(tmp_path / "absent")]
    failed = subprocess.run(module, capture_output=True, text=True, env=dict(os.environ))
    assert failed.returncode == 1
    assert failed.stderr.startswith("tasft: there is no folder") and "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["tiny_seen", "tiny_topic"], ["seen", "topic"]),
        (["tiny_seen"], ["tiny_seen"]),
        (["i_cona", "harmfulq"], ["i_cona", "harmfulq"]),
        (["a", "ab"], ["a", "ab"]),
        ([], []),
    ],
)
def test_short_names(names, short):
    assert list(short_names(names).values()) == short


def test_many_settings_leave_the_figures_room(tmp_path, capsys):
    for loss in ("dpo", "emd", "emd_exact", "grad_ascent", "kto", "nlcl", "npo", "orpo", "simnpo", "wga"):
        for weight in (0.1, 0.2, 0.3, 0.4, 0.5):
            make_run(tmp_path, loss, 50, weight, 0, answers(3, 2), share=weight / 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of axes without room
        main([str(tmp_path)])
    assert (tmp_path / "report" / "harm-by-over-refusal.png").stat().st_size > 20_000


def test_a_difference_of_nothing_has_an_interval(tmp_path):
    for seed in (0, 1):
        judged_run(tmp_path, "sft", 0, seed, judges=[("guard", GUARD), ("reward", REWARD)],
                   guard=["harmful"] * 20, reward=[1.0] * 20)  # fmt: skip
        judged_run(tmp_path, "emd", 50, seed, judges=[("guard", GUARD), ("reward", REWARD)],
                   guard=["harmful"] * 20, reward=[1.0] * 20)  # fmt: skip
    judged_run(tmp_path, "nlcl", 50, judges=[("guard", GUARD)], guard=["harmless"] * 20)
    assert main([str(tmp_path)]) == 0
    found = {(row["setting"], row["metric"]): row for row in read_csv(tmp_path / "report/comparisons.csv")}
    same = found["emd 50 0.5", "harmful"]
    end = 1.959964**2 / (20 + 1.959964**2)  # Tango's, for one run of 20 prompts
    assert (float(same["low"]), float(same["high"])) == pytest.approx((-end, end), abs=1e-6)
    assert (same["interval"], same["test"], same["p"]) == ("Tango, score", "paired bootstrap", "1.0")
    other = found["nlcl 50 0.5", "harmful"]  # one seed against two
    assert float(other["difference"]) == float(other["low"]) == -1.0 and float(other["high"]) > -1.0
    score = found["emd 50 0.5", "mean score"]
    assert (score["difference"], score["low"], score["interval"]) == ("0.0", "", "")
    assert "+0 [no interval], p = 1.000" in (tmp_path / "report/table.md").read_text()


def again_run(root, how, digest, seed, harmful, answers):
    """Plain SFT on a tuned model."""
    run = judged_run(root / "made", "sft", 0, seed, **answers)
    config = yaml.safe_load(run.config.read_text())
    config["model"]["name"] = f"m-from_{how}_{digest}"
    config["data"]["harmful"] = harmful
    run.config.write_text(yaml.safe_dump(config))
    target = root / config["model"]["name"] / "sft" / f"toxic0-harmful{harmful}" / f"seed{seed}-0"
    target.parent.mkdir(parents=True, exist_ok=True)
    run.path.rename(target)


def test_runs_that_tune_again_compare_by_what_they_go_on_from(tmp_path, capsys):
    judged_run(tmp_path, "sft", 0, **guarded(10, 0, 2))
    judged_run(tmp_path, "emd", 50, **guarded(2, 6, 4))
    for seed, digit in ((1, "a"), (2, "b")):
        again_run(tmp_path, "sft_toxic0", f"{digit}0000001", seed, 0, guarded(12, 0, 0))
        again_run(tmp_path, "emd_toxic50", f"{digit}0000002", seed, 0, guarded(4 + seed, 4, 4 - seed))
        again_run(tmp_path, "nlcl_toxic50", f"{digit}0000003", seed, 0, guarded(1, 10, 1))
        again_run(tmp_path, "sft_toxic0", f"{digit}0000001", seed, 20, guarded(12, 0, 0))
        again_run(tmp_path, "emd_toxic50", f"{digit}0000002", seed, 20, guarded(11, 1, 0))
    assert main([str(tmp_path)]) == 0
    made = {(row["model"], row["setting"], row["against"]) for row in read_csv(tmp_path / "report/comparisons.csv")}
    again = "m tuned again"
    assert made == {
        ("m", "emd 50 0.5", "sft 0"),
        (again, "sft 0 from=emd_toxic50", "sft 0 from=sft_toxic0"),
        (again, "sft 0 from=nlcl_toxic50", "sft 0 from=sft_toxic0"),
        (again, "sft 0 from=emd_toxic50 harmful=20", "sft 0 from=sft_toxic0 harmful=20"),
    }
    markdown = (tmp_path / "report/table.md").read_text().split(f"## {again}")[1]
    assert "| sft | from=emd_toxic50 | 0 | - | - | 2 | 45.8 [0-100] ±5.9 |" in markdown  # 5 and 6 of 12
    pair = ["sft 0 from=emd_toxic50", "sft 0 from=nlcl_toxic50"]
    assert main([str(tmp_path), "--compare", *pair]) == 0
    (harm,) = [row for row in read_csv(tmp_path / "report/comparisons.csv") if row["metric"] == "harmful"]
    assert [harm["setting"], harm["against"], harm["runs"], harm["n"]] == [*pair, "2", "12"]
    assert float(harm["difference"]) == pytest.approx(5.5 / 12 - 1 / 12)
    assert "no finished run with toxic rows" in capsys.readouterr().out


def test_tasks_stand_beside_and_are_not_compared(tmp_path):
    for loss, toxic in (("sft", 0), ("emd", 50)):
        run = judged_run(tmp_path, loss, toxic, **guarded(3, 3, 4))
        run.tasks.mkdir()
        result = {"task": "boolq", "metrics": {"acc": {"value": 0.5, "stderr": 0.1}}, "n": 20}
        (run.tasks / "boolq@93.json").write_text(json.dumps(result))
    assert main([str(tmp_path)]) == 0
    assert "lm-eval<br>boolq acc" in (tmp_path / "report/table.md").read_text()
    assert not [row for row in read_csv(tmp_path / "report/comparisons.csv") if row["benchmark"] == "boolq"]


@pytest.mark.parametrize("width", [200, 140, 100])
def test_the_table_fits_its_terminal_and_says_what_is_left_out(tmp_path, width):
    make_tree(tmp_path)
    (summary,) = summaries(read_table(tmp_path))
    summary.lines[0] = replace(summary.lines[0], setting=replace(summary.lines[0].setting, variant="x" * 40 + " y=1"))
    blocks, left_out = rich_tables(summary, width)
    console = Console(width=width, record=True, file=io.StringIO())
    for block in blocks:
        console.print(block)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text and text.count("scored \n") == len(blocks)
    headers = [str(column.header).split("\n") for block in blocks for column in block.columns]
    shown = {tuple(header) for header in headers if header[0] in ("harmful", "helpful")}
    everything = {("harmful", "seen"), ("harmful", "topic"), ("harmful", "all", "toxic"), ("helpful", "safe")}
    assert (len(blocks) > 1) == (width == 100)
    assert shown == (everything if width == 200 else everything - {("harmful", "seen"), ("harmful", "topic")})
    assert bool(left_out) == (width < 200)
