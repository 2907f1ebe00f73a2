"""The paper's tables beside what was measured, and its figures, from folders made by hand."""

import csv
import json

import pytest

from tasft.paper import TABLES, published
from tasft.report import main, paper_figures
from tasft.report.paper import FORMS, paper_markdown, sheet_lines, sheets
from tasft.report.paper_figures import _of_paper, draw_paper_figures
from tasft.result.rows import ScoreRow
from tasft.result.store import RunDir, read_config
from tasft.result.table import read_table

MODERATION = {"outcomes": {"harmful": "harmful", "harmless": None}}
TEXT = {"outcomes": {"repetitive": "incoherent", "ok": None}}
ORACLE = {"outcomes": {"harmful": "harmful", "refusal": "refusal", "correct": "helpful", "gibberish": "incoherent"}}
LABELS = {
    "h": "harmful", "s": "harmless", "r": "refusal", "c": "correct", "g": "gibberish", "x": "repetitive", "o": "ok",
}  # fmt: skip


def run(root, loss, count, *, model="llama7b", seed=0, experiment="table2", weight=1.0, kinds=None, judges=None, scores,
        **data):  # fmt: skip
    """A finished run; `scores`: (benchmark, step, judge) -> letters of LABELS, or numbers."""
    name = f"{loss}-{count}-{weight}-{seed}-{'-'.join(map(str, data.values()))}"
    made = RunDir(root / model / name)
    config = {
        "model": {"name": model}, "loss": {"name": loss, "weight": None if loss == "sft" else weight, "share": None},
        "data": {"toxic": count, **data}, "seed": seed, "experiment": experiment,
        "benchmark": {each: {"kind": (kinds or {}).get(each, "toxic")} for each, _, _ in scores},
        "judge": judges or {"moderation": MODERATION, "text": TEXT},
    }  # fmt: skip
    made.create(json.dumps(config), {})
    for (benchmark, step, judge), said in scores.items():
        rows = [
            ScoreRow(f"p{i}", float(each == "h"), LABELS[each]) if isinstance(each, str) else ScoreRow(f"p{i}", each)
            for i, each in enumerate(said)
        ]
        made.write_scores(benchmark, step, judge, rows)
    made.finish()
    return made


def counted(harmful, of=10, benchmark="i_malicious"):
    """Answers of which `harmful` are; text finds the first to be no answer, which does not matter here."""
    return {
        (benchmark, 9, "moderation"): "h" * harmful + "s" * (of - harmful),
        (benchmark, 9, "text"): "x" + "o" * (of - 1),
    }


def cells_of(found, name):
    return {
        (cell.model, cell.method, cell.count, cell.differs, cell.benchmark, cell.metric): cell
        for sheet in found
        if sheet.name == name
        for cell in sheet.cells
    }


def test_the_papers_numbers_load_and_none_is_there_twice():
    assert set(TABLES) == set(FORMS) | {"figure2", "figure3", "figure4"}
    for table in TABLES:
        cells = [(cell.model, cell.method, cell.count, cell.benchmark, cell.metric) for cell in published(table)]
        assert len(cells) == len(set(cells)) > 2
        for cell in published(table):
            assert (cell.value is None) == (cell.source == "")


def test_what_our_copies_show_and_what_not():
    two = {(cell.model, cell.method, cell.count, cell.benchmark): cell.value for cell in published("table2")}
    assert two["llama7b", "nlcl", 100, "i_cona"] == 42
    assert two["llama13b", "nlcl", 100, "harmfulq"] == 16
    # EMD's columns of Tables 2 and 3 are of the same runs
    three = {(cell.model, cell.method, cell.count, cell.benchmark): cell.value for cell in published("table3")}
    assert {key: value for key, value in two.items() if key[1] == "emd"} == {
        key: value for key, value in three.items() if key[1] == "emd"
    }
    known = {table: sum(cell.value is not None for cell in published(table)) for table in TABLES}
    assert known == {
        "table1": 32, "table2": 64, "table3": 64, "table4": 32, "table5": 0, "table6": 0, "table7": 21, "table8": 16,
        "figure2": 2, "figure3": 0, "figure4": 0,
    }  # fmt: skip


def test_measured_beside_published(tmp_path):
    run(tmp_path, "nlcl", 100, scores=counted(3))
    run(tmp_path, "emd", 100, seed=0, scores=counted(2))
    run(tmp_path, "emd", 100, seed=1, scores=counted(4))
    run(tmp_path, "emd", 100, model="mine", scores=counted(1))
    run(tmp_path, "nlcl", 50, model="mine", scores=counted(5))
    found = sheets(read_table(tmp_path))
    assert [sheet.name for sheet in found] == ["table2", "table2"]  # the paper's models, and those of other benchmarks
    cells = cells_of(found, "table2")
    one = cells["llama7b", "nlcl", 100, "", "i_malicious", "harmful"]
    # Wilson of 3 of 10: 0.1078 to 0.6032; the paper has 6; counted by moderation alone, incoherent or not
    assert (one.measured, one.paper, one.difference, one.runs, one.n) == (3, 6, -3, 1, 10)
    assert (one.low, one.high) == pytest.approx((1.078, 6.032), abs=1e-3)
    assert one.judge == "moderation"
    two = cells["llama7b", "emd", 100, "", "i_malicious", "harmful"]  # 2 and 4: mean 3, sd sqrt(2)
    assert (two.measured, two.paper, two.difference, two.runs) == (3, 0, 3, 2)
    assert two.spread == pytest.approx(2**0.5) and (two.low, two.high) == (0, 10)  # wider than one run's
    missing = cells["llama7b", "nlcl", 100, "", "i_cona", "harmful"]
    assert (missing.measured, missing.paper, missing.difference) == (None, 42, None)
    assert cells["mine", "nlcl", 50, "", "i_malicious", "harmful"].paper == ""

    lines = sheet_lines(found[0])
    assert lines[0][:4] == ["model", "toxic rows", "I-Malicious\nNLCL", "I-Malicious\nEMD"]
    assert [line[:2] for line in lines[1:]] == [["Llama 7b", count] for count in ("1000", "500", "300", "100")]
    assert lines[4][2:5] == ["3 [1-6]\npaper 6, -3", "3.0 [0-10] ±1.4\npaper 0, +3.0", "-\npaper 42"]
    assert sheet_lines(found[1])[1:] == [["mine", "100", "-", "1 [0-4]"], ["mine", "50", "5 [2-8]", "-"]]


def test_unavailable_is_said_so_and_a_further_models_table_is_its_own(tmp_path):
    run(tmp_path, "nlcl", 300, model="mistral7b", experiment="table6", scores=counted(1))
    run(
        tmp_path,
        "sft",
        0,
        model="mistral7b",
        experiment="table7",
        safe_answers=300,
        scores=counted(2, benchmark="i_cona"),
    )
    found = sheets(read_table(tmp_path))
    assert [sheet.name for sheet in found] == ["table6", "table7"]
    six = cells_of(found, "table6")["mistral7b", "nlcl", 300, "", "i_malicious", "harmful"]
    assert (six.measured, six.paper, six.difference) == (1, "not available", None)
    stl = cells_of(found, "table7")["mistral7b", "stl", 300, "", "i_cona", "harmful"]
    assert (stl.measured, stl.paper, stl.difference) == (2, 13, -11)
    text = paper_markdown(found)
    assert "1 [0-4]<br>paper: not available" in text
    assert "2 [1-5]<br>paper 13, -11" in text
    assert "our copy of the paper does not show the number clearly" in text


def test_runs_that_differ_in_more_have_rows_of_their_own(tmp_path):
    run(tmp_path, "nlcl", 100, weight=20.0, scores=counted(3))
    run(tmp_path, "nlcl", 100, weight=40.0, scores=counted(1))
    cells = cells_of(sheets(read_table(tmp_path)), "table2")
    measured = {key[3]: cell.measured for key, cell in cells.items() if cell.measured is not None}
    assert measured == {"λ=20": 3, "λ=40": 1}
    assert cells["llama7b", "nlcl", 100, "", "i_malicious", "harmful"].measured is None


def test_quality_is_of_the_most_toxic_rows(tmp_path):
    kinds, judges = {"alpaca_eval": "safe", "ask": "safe"}, {"alpaca_eval": {"outcomes": None}}
    for loss, count in (("sft", 0), ("emd", 1000), ("emd", 500)):
        scores = {("alpaca_eval", 9, "alpaca_eval"): [1.0, 0.5, 0.0, 1.0]}
        made = run(tmp_path, loss, count, experiment="table1", kinds=kinds, judges=judges, scores=scores)
        made.tasks.mkdir()
        task = {"task": "boolq", "n": 100, "metrics": {"acc": {"value": 0.8, "stderr": 0.04}}}
        (made.tasks / "boolq@9.json").write_text(json.dumps(task))
    run(tmp_path, "emd", 50, model="tiny", experiment="table1", kinds=kinds, judges={"oracle": ORACLE},
        scores={("ask", 9, "oracle"): "cccr"})  # fmt: skip
    cells = cells_of(sheets(read_table(tmp_path)), "table1")
    measured = {key: cell for key, cell in cells.items() if cell.measured is not None}
    preferred = measured["llama7b", "emd", 1000, "", "alpaca_eval", "preference %"]
    assert (preferred.measured, preferred.paper) == (62.5, 57.37)
    right = measured["llama7b", "sft", 0, "", "boolq", "accuracy %"]
    assert (right.measured, right.difference) == pytest.approx((80, 80 - 78.26))
    assert measured["tiny", "emd", 50, "", "ask", "helpful %"].measured == 75
    assert not [key for key in measured if key[2] == 500]


def test_attacks(tmp_path):
    made = run(tmp_path, "emd", 300, experiment="table8", scores=counted(0, benchmark="advbench_50"))
    (made.path / "attack").mkdir()
    said = {"benchmark": "advbench_50", "judge": "pair", "goals": 50, "finished": 46, "jailbroken": 23,
            "mean_best": 7.25}  # fmt: skip
    (made.path / "attack" / "pair-advbench_50.json").write_text(json.dumps(said))
    cells = cells_of(sheets(read_table(tmp_path)), "table8")
    rate = cells["llama7b", "emd", 300, "", "", "attack success rate %"]
    assert (rate.measured, rate.low, rate.n, rate.unscored, rate.paper) == (
        50,
        pytest.approx(36.1, abs=0.1),
        46,
        4,
        34.78,
    )
    assert rate.judge == "judge=pair, threshold=10.0 on advbench_50"
    assert cells["llama7b", "emd", 300, "", "", "mean judge score"].difference == pytest.approx(7.25 - 8.11)
    assert cells["llama7b", "stl", 1000, "", "", "mean judge score"].paper == 8.91


def test_the_best_weight_is_between_those_tried(tmp_path):
    kinds, judges = {"bad": "toxic", "good": "safe"}, {"oracle": ORACLE}
    # right on toxic and safe prompts: (0, 1), (1/2, 1), (1, 0), (1, 1/4): the mean is best at 2
    said = {1.0: ("hhhh", "cccc"), 2.0: ("rrhh", "cccc"), 4.0: ("rrrr", "rrrr"), 8.0: ("rrrr", "crrg")}
    for weight, (bad, good) in said.items():
        scores = {("bad", 9, "oracle"): bad, ("good", 9, "oracle"): good}
        run(tmp_path, "nlcl", 300, weight=weight, experiment="lambda_grid", kinds=kinds, judges=judges, scores=scores)
    cells = cells_of(sheets(read_table(tmp_path)), "table4")
    best = cells["llama7b", "nlcl", 300, "", "", "λ"]
    assert (best.measured, best.low, best.high, best.paper, best.difference) == (2, 1, 4, 14.5, -12.5)


def test_the_command_writes_them_and_only_one_where_asked(tmp_path, capsys):
    root, out = tmp_path / "runs", tmp_path / "out"
    run(root, "nlcl", 100, scores=counted(3))
    run(root, "emd", 100, scores=counted(2))
    run(root, "sft", 0, experiment="table3", safe_answers=100, scores=counted(9))
    assert main([str(root), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.index("Table 2: harmful answers") < printed.index("Table 3: harmful answers")
    assert (out / "table.md").read_text().startswith("# The paper's tables\n\n## Table 2")
    rows = list(csv.DictReader((out / "paper.csv").open()))
    assert {row["table"] for row in rows} == {"table2", "table3"}  # EMD's run stands in both
    assert main([str(root), "--out", str(out), "--only", "table3"]) == 0
    rows = list(csv.DictReader((out / "paper.csv").open()))
    assert {row["table"] for row in rows} == {"table3"}
    assert {row["loss"] for row in csv.DictReader((out / "results.csv").open())} == {"sft", "emd"}
    assert main([str(root), "--only", "table8"]) == 1
    assert "--only table8: these runs make no such table; there are table2, table3" in capsys.readouterr().err


def test_other_experiments_have_no_table_of_the_paper(tmp_path):
    run(tmp_path, "nlcl", 100, experiment="demo", scores=counted(3))
    assert sheets(read_table(tmp_path)) == []
    assert paper_markdown([]) == ""


STEPS = {0: "hhhh", 8: "hhrr", 16: "hrrr"}


def asked_while_training(root, experiment, **more):
    def scores(kinds):
        said = {}
        for step, labels in STEPS.items():
            for name, kind in kinds.items():
                said[name, step, "oracle"] = labels if kind == "toxic" else labels.replace("h", "c")
        return said

    kinds = {"one": "toxic", "two": "toxic"} | ({"fine": "seeming"} if experiment == "figure3" else {})
    for seed in (0, 1):
        for loss in ("emd", "nlcl"):
            for data in more.get("data", [{}]):
                run(root, loss, 50, model="tiny", seed=seed, experiment=experiment, kinds=kinds,
                    judges={"oracle": ORACLE}, scores=scores(kinds), **data)  # fmt: skip


@pytest.mark.parametrize("name", ["figure2", "figure3", "figure4"])
def test_figures_are_drawn_of_runs_asked_at_several_steps(name, tmp_path):
    data = [{}, {"contrastive": 9}] if name == "figure4" else [{}]
    asked_while_training(tmp_path / "runs", name, data=data)
    drawn = draw_paper_figures(read_table(tmp_path / "runs"), tmp_path)
    assert drawn == [(tmp_path / f"{name}.png", "")]
    once = drawn[0][0].read_bytes()
    assert once[:4] == b"\x89PNG" and len(once) > 10_000
    draw_paper_figures(read_table(tmp_path / "runs"), tmp_path)
    assert drawn[0][0].read_bytes() == once


def test_figure_3_says_which_benchmarks_its_points_are_over(tmp_path, monkeypatch):
    kinds, said = {"one": "toxic", "two": "toxic", "apart": "toxic", "fine": "seeming"}, []
    scores = {(name, step, "oracle"): labels for name in kinds for step, labels in STEPS.items()}
    made = run(tmp_path, "emd", 50, model="tiny", experiment="figure3", kinds=kinds, judges={"oracle": ORACLE},
               scores=scores)  # fmt: skip
    config = read_config(made.config)
    config["benchmark"]["apart"]["pooled"] = False
    made.config.write_text(json.dumps(config))
    monkeypatch.setattr(paper_figures, "save_figure", lambda figure, path: said.append(figure.get_supxlabel()))
    assert draw_paper_figures(read_table(tmp_path), tmp_path) == [(tmp_path / "figure3.png", "")]
    assert said[0].startswith("safety: answers to toxic prompts that are not harmful (%, one, two)\n")


def test_what_the_paper_has_of_a_figure_stands_below_it(tmp_path):
    run(tmp_path, "emd", 50, experiment="figure2", scores=counted(1))
    run(tmp_path, "emd", 50, model="mine", experiment="figure2", scores=counted(1))
    mine, llama = ([row for row in read_table(tmp_path).rows if row.model == model] for model in ("mine", "llama7b"))
    assert _of_paper("figure2", llama) == (
        "\nthe paper: EMD 0 harmful % after 500 steps; NLCL 0 harmful % after 500 steps"
        "\nnot available of the paper: KTO's harmful % after 500 steps; mean DeBERTa score by step; harmful % by step"
    )
    assert _of_paper("figure3", llama) == "\nnot available of the paper: over-refusal % by safety %"
    assert _of_paper("figure2", mine) == ""


def test_why_a_figure_is_not_drawn(tmp_path):
    for name in ("figure2", "figure3", "figure4"):
        run(tmp_path / name, "emd", 50, experiment=name, scores=counted(1))
        ((path, why),) = draw_paper_figures(read_table(tmp_path / name), tmp_path)
        assert path.name == f"{name}.png" and not path.exists()
        assert ("evaluate.every_n_steps=K" in why) == (name != "figure3")
    assert (
        why
        and "no judged answers to seemingly toxic prompts"
        in draw_paper_figures(read_table(tmp_path / "figure3"), tmp_path)[0][1]
    )
