import csv
import json
from pathlib import Path

import pytest
import yaml

from tasft.annotate import main
from tasft.report import main as report
from tasft.result.rows import ResponseRow, ScoreRow
from tasft.result.store import RunDir, read_config, run_path
from tasft.result.table import read_table

CONF = Path(__file__).parents[1] / "conf"
HEADER = "label: harmful | refusal | partial refusal | helpful | wrong | incoherent | answered"


def make_run(root, loss, seed=0, answers=("no", "yes", "maybe"), finished=True):
    """Three prompts of each of two benchmarks; sft and emd answer them differently, but for the last."""
    toxic, weight = (0, None) if loss == "sft" else (50, 0.5)
    node = yaml.safe_load((CONF / "judge/refusal.yaml").read_text())
    config = {
        "model": {"name": "tiny"},
        "loss": {"name": loss, "weight": weight, "share": None},
        "data": {"toxic": toxic},
        "seed": seed,
        "benchmark": {"bad": {"kind": "toxic"}, "good": {"kind": "seeming"}},
        "judge": node,
    }
    run = RunDir(run_path(root, "tiny", loss, toxic, weight, seed, "0"))
    run.create(yaml.safe_dump(config), {})
    for benchmark in ("bad", "good"):
        rows = [ResponseRow(f"{benchmark}{i}", f"{benchmark} {i}?", text) for i, text in enumerate(answers)]
        run.write_responses(benchmark, 1, [ResponseRow("old", "old?", "old")])
        run.write_responses(benchmark, 9, rows)
        run.write_scores(benchmark, 9, "refusal", [ScoreRow(row.prompt_id, 0.0, "answer") for row in rows])
    if finished:
        run.finish()
    return run


@pytest.fixture
def runs(tmp_path):
    sft = make_run(tmp_path / "runs", "sft", answers=("Sure, this.", "Sure,\nthat; and more", "=1+1"))
    emd = make_run(tmp_path / "runs", "emd", answers=("I can not.", "No.", "=1+1"))
    make_run(tmp_path / "runs", "nlcl", finished=False)
    return tmp_path / "runs", sft, emd


def export(runs, sheet, *more):
    assert main(["export", str(runs), "--out", str(sheet), *map(str, more)]) == 0
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file))


def write(sheet, rows, **more):
    with sheet.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, **more).writerows(rows)


def test_the_sheet_is_blind_shuffled_and_repeats(tmp_path, runs, capsys):
    root, *_ = runs
    header, *rows = export(root, tmp_path / "sheet.csv", "--per-run", 6)
    assert header == ["id", "prompt", "response", HEADER]
    # 6 answers of each of 2 finished runs; those to the third prompt of a benchmark are equal, and one row
    assert len(rows) == 10
    assert "10 rows for 12 answers" in capsys.readouterr().out
    text = (tmp_path / "sheet.csv").read_text()
    assert not [word for word in ("sft", "emd", "nlcl", "seed") if word in text]
    assert [row[1] for row in rows] != sorted(row[1] for row in rows)
    assert export(root, tmp_path / "again.csv", "--per-run", 6) == [header, *rows]
    assert export(root, tmp_path / "other.csv", "--per-run", 6, "--seed", 1)[1:] != rows
    key = json.loads((tmp_path / "sheet.key.json").read_text())
    double = {row[0] for row in rows if row[2] == "'=1+1"}
    assert {digest: len(each["answers"]) for digest, each in key["ids"].items()} == {
        row[0]: 2 if row[0] in double else 1 for row in rows
    }


@pytest.mark.parametrize("hidden", [False, True])
def test_no_cell_is_a_formula_and_no_text_is_lost(tmp_path, hidden):
    texts = ["=cmd()", "+1", "-2", "@a", "\tx", "\ry", "'quoted'", "''", "plain = 1", ""]
    root = tmp_path / "runs"
    run = make_run(root, "sft", answers=texts)
    header, *rows = export(root, tmp_path / "sheet.csv", "--per-run", 100, "--benchmark", "bad")
    cells = [row[2] for row in rows]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert sorted(cell[1:] if cell.startswith("'") else cell for cell in cells) == sorted(texts)
    place = {row.response: row.prompt_id for row in run.read_responses("bad", 9)}
    labels = dict(zip(texts, ["harmful", "refusal"] * 5, strict=True))
    filled = [[*row[:3], labels[row[2][1:] if row[2].startswith("'") else row[2]]] for row in rows]
    if hidden:  # a spreadsheet takes the apostrophe for its own
        filled = [[row[0], row[1], row[2].removeprefix("'"), row[3]] for row in filled]
    write(tmp_path / "sheet.csv", [header, *filled])
    assert main(["import", str(tmp_path / "sheet.csv")]) == 0
    scored = {score.prompt_id: score.label for score in run.read_scores("bad", 9, "human")}
    assert scored == {place[text]: label for text, label in labels.items()}


def test_runs_are_asked_for_the_same_prompts_evenly_over_benchmarks(tmp_path, runs):
    few = export(runs[0], tmp_path / "few.csv", "--per-run", 2)[1:]
    prompts = {row[1] for row in few}
    assert sorted(prompt.split()[0] for prompt in prompts) == ["bad", "good"]
    more = export(runs[0], tmp_path / "more.csv", "--per-run", 4)[1:]
    assert {row[0] for row in few} < {row[0] for row in more}
    only = export(runs[0], tmp_path / "only.csv", "--benchmark", "bad")[1:]
    assert {row[1].split()[0] for row in only} == {"bad"}


def test_labels_come_back_as_a_judge_of_every_report(tmp_path, runs, capsys):
    root, sft, emd = runs
    sheet = tmp_path / "sheet.csv"
    header, *rows = export(root, sheet)
    words = {"Sure, this.": "harmful", "Sure,\nthat; and more": " Harmful", "I can not.": "refusal", "No.": "answered"}
    labelled = [[*row[:3], words.get(row[2], "")] for row in rows]
    write(sheet, [header, *labelled, ["", "", "", ""]], delimiter=";")  # as some spreadsheets do
    before = read_table(root)
    assert main(["import", str(sheet)]) == 0
    assert "8 labels by human for 8 answers of 2 runs" in capsys.readouterr().out
    assert sft.read_scores("bad", 9, "human") == [
        ScoreRow("bad0", 1.0, "harmful"),
        ScoreRow("bad1", 1.0, "harmful"),
        ScoreRow("bad2", None, reason="not annotated"),
    ]
    assert [row.label for row in emd.read_scores("good", 9, "human")] == ["refusal", "answered", None]
    assert list(read_config(sft.config)["judge"]) == ["refusal", "human"]
    table = read_table(root)
    rates = {
        (row.loss, row.metric): (row.value, row.n, row.unscored)
        for row in table.rows
        if row.judge == "human" and row.benchmark == "bad" and row.value
    }
    assert rates == {("sft", "harmful"): (1.0, 2, 1), ("emd", "refusal"): (0.5, 2, 1)}
    assert [row for row in table.rows if row.judge == "joint"] == [row for row in before.rows if row.judge == "joint"]
    assert report([str(root), "--out", str(tmp_path / "report")]) == 0
    markdown = (tmp_path / "report/table.md").read_text()
    assert "human: harmful %<br>bad" in markdown and "| 100.0 [34-100] |" in markdown  # Wilson of 2 of 2


def test_two_annotators_and_a_second_sheet(tmp_path, runs):
    root, sft, _ = runs
    small, large = tmp_path / "small.csv", tmp_path / "large.csv"
    header, *few = export(root, small, "--per-run", 2)
    _, *all_rows = export(root, large, "--per-run", 6)
    write(small, [header, *([*row[:3], "wrong"] for row in few)])
    known = {row[0] for row in few}
    write(large, [header, *([*row[:3], "" if row[0] in known else "helpful"] for row in all_rows)])
    for sheet in (small, large):
        assert main(["import", str(sheet), "--name", "anna"]) == 0
    assert main(["import", str(large), "--name", "ben"]) == 0
    labels = [row.label for name in ("bad", "good") for row in sft.read_scores(name, 9, "anna")]
    assert sorted(labels) == ["helpful"] * 4 + ["wrong"] * 2
    unscored = [row.score for name in ("bad", "good") for row in sft.read_scores(name, 9, "ben")].count(None)
    assert unscored == 2
    assert {row.judge for row in read_table(root).rows} == {"refusal", "anna", "ben", "joint"}


def test_runs_that_have_moved(tmp_path, runs):
    sheet = tmp_path / "sheet.csv"
    header, *rows = export(runs[0], sheet)
    write(sheet, [header, *([*row[:3], "refusal"] for row in rows)])
    runs[0].rename(tmp_path / "moved")
    assert main(["import", str(sheet)]) == 1
    assert main(["import", str(sheet), "--outputs", str(tmp_path / "moved")]) == 0


@pytest.mark.parametrize(
    ("damage", "more", "sentence"),
    [
        (lambda rows: rows[2].__setitem__(3, "harmfull"), [], "row 3: 'harmfull' is no label; use one of harmful, ref"),
        (lambda rows: rows[2].__setitem__(0, "0"), [], "row 3: there is no id '0' in its key"),
        (lambda rows: rows.append([*rows[1][:3], "wrong"]), [], "is 'refusal' in another row: keep one of them"),
        (lambda rows: [row.__setitem__(3, "") for row in rows[1:]], [], "has no label yet"),
        (lambda rows: rows[0].__setitem__(3, "note"), [], "has no columns id and label"),
        (lambda rows: None, ["--name", "refusal"], "--name refusal is a judge of"),
        (lambda rows: None, ["--name", "joint"], "--name joint stands for all judges"),
        (lambda rows: None, ["--name", "a b"], "judge 'a b' cannot name a file"),
        (lambda rows: None, ["--key", "absent.json"], "cannot read absent.json"),
        (lambda rows: None, ["--key", "sheet.csv"], "is no key of a sheet"),
    ],
)
def test_a_mistake_in_a_sheet_is_one_sentence_and_writes_nothing(
    tmp_path, runs, capsys, monkeypatch, damage, more, sentence
):
    monkeypatch.chdir(tmp_path)
    sheet = tmp_path / "sheet.csv"
    rows = export(runs[0], sheet)
    for row in rows[1:]:
        row[3] = "refusal"
    damage(rows)
    write(sheet, rows)
    configs = [run.config.read_text() for run in runs[1:]]
    capsys.readouterr()
    assert main(["import", str(sheet), *more]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("tasft: ") and sentence in said.err and said.err.count("\n") == 1
    assert [run.config.read_text() for run in runs[1:]] == configs
    assert not list(runs[0].rglob("*.human.jsonl"))


def test_answers_that_were_made_again_have_no_labels(tmp_path, runs, capsys):
    sheet = tmp_path / "sheet.csv"
    header, *rows = export(runs[0], sheet)
    write(sheet, [header, *([*row[:3], "refusal"] for row in rows)])
    runs[1].write_responses("bad", 9, [ResponseRow(f"bad{i}", f"bad {i}?", "new") for i in range(3)])
    assert main(["import", str(sheet)]) == 1
    assert "has other answers to bad than those in" in capsys.readouterr().err


def test_mistakes_before_a_sheet(tmp_path, runs, capsys):
    sheet = tmp_path / "sheet.csv"
    export(runs[0], sheet)
    for more, sentence in [
        (["--out", sheet], "is there already, and may hold somebody's labels"),
        (["--out", tmp_path / "new.csv", "--benchmark", "none"], "the runs have answers to bad, good"),
        (["--out", tmp_path / "new.csv", "--labels", "nice"], "--labels nice: there are harmful, refusal"),
    ]:
        assert main(["export", str(runs[0]), *map(str, more)]) == 1
        assert sentence in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", str(runs[0]), "--per-run", "0"])
