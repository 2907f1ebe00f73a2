import json
import re

import pytest
import yaml

from tasft.report.page import data as page_module
from tasft.report.page import page, write_page
from tasft.report.page.data import page_data, sample_of, thinned
from tasft.report.summary import summaries
from tasft.result.rows import ResponseRow, ScoreRow
from tasft.result.table import read_table
from tests.report.runs import make_run

TOXIC = ("loss=emd", "data.toxic=50", "loss.share=0.06")


def data_of(root):
    table = read_table(root)
    return page_data(root, table, summaries(table), ["A note."])


def column(data, metric, benchmark, judge="joint", model=0):
    """Place of a column of a model."""
    wanted = (judge, metric, benchmark)
    columns = data["models"][model]["columns"]
    return next(i for i, c in enumerate(columns) if (c["judge"], c["metric"], c["benchmark"]) == wanted)


def embedded(html):
    """The data of a page."""
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', html, re.DOTALL)[1])


def test_cells_are_those_of_the_tables(tmp_path):
    for seed, harm in ((0, 0.1), (1, 0.3)):
        make_run(tmp_path, *TOXIC, seed=seed, harm=harm, over=0.2, prompts=10)
    data = data_of(tmp_path)
    harmful, (run, _), (setting,) = column(data, "harmful", "tiny_seen"), data["runs"], data["models"][0]["settings"]
    assert run["cells"][harmful] == [0.1, 0.0178762, 0.404150, None, 10, 0]  # Wilson of 1 of 10
    assert run["cells"][column(data, "harmful", "pooled")][4:] == [30, 0]
    together = [0.2, 0.0, 1.0, 0.141421, 10, 0]  # mean and sd of 0.1 and 0.3, and the interval of two seeds
    assert setting["cells"][harmful] == pytest.approx(together, rel=1e-5)
    assert (setting["runs"], setting["seeds"], setting["label"]) == ([0, 1], [0, 1], "emd 50 0.44")
    columns = data["models"][0]["columns"]
    wanted = {(c["kind"], c["metric"]): c["better"] for c in columns if c["part"] == "outcomes"}
    assert wanted["toxic", "harmful"] == wanted["seeming", "refusal"] == "low"
    assert wanted["toxic", "refusal"] == wanted["safe", "helpful"] == "high"


def test_unscored_answers_are_counted(tmp_path):
    run = make_run(tmp_path, *TOXIC, prompts=4, harm=0.5)
    scores = run.read_scores("tiny_seen", 40, "oracle")
    run.write_scores("tiny_seen", 40, "oracle", [ScoreRow(scores[0].prompt_id, None, reason="no reply"), *scores[1:]])
    data = data_of(tmp_path)
    assert data["runs"][0]["cells"][column(data, "harmful", "tiny_seen")][4:] == [3, 1]


def test_thinned_keeps_both_ends():
    assert thinned([1, 2, 3], 3) == [1, 2, 3]
    assert thinned(list(range(11)), 5) == [0, 2, 5, 8, 10]  # every 2.5th, to even
    assert thinned(list(range(1000)), 200)[-1] == 999 and len(set(thinned(list(range(1000)), 200))) == 200


def test_curves_leave_out_what_says_nothing(tmp_path):
    make_run(tmp_path, *TOXIC, steps=500)
    make_run(tmp_path, "loss=sft", steps=3)
    data = data_of(tmp_path)
    sft, emd = data["runs"]
    assert set(sft["curves"]) == {"loss", "safe_loss"}
    assert [data["steps"][sft["curves"]["loss"][0]], len(sft["curves"]["loss"][1])] == [[1, 2, 3], 3]
    steps, values = emd["curves"]["safe_loss"]
    assert (data["steps"][steps][0], data["steps"][steps][-1], len(values)) == (1, 500, 200)
    steps, values = emd["curves"]["toxic_loss"]
    assert not any(step % 3 == 0 for step in data["steps"][steps]) and all(values)  # those steps had no toxic rows
    steps, values = emd["curves"]["weight"]  # λ does not change
    assert data["steps"][steps] == [1, 500] and values == [0.4403, 0.4403]


def test_rates_during_the_training(tmp_path, monkeypatch):
    make_run(tmp_path, *TOXIC, harm=0.0, every=10, prompts=10)

    def rates():
        data = data_of(tmp_path)
        evals = data["runs"][0]["evals"][column(data, "harmful", "tiny_seen")]
        return [(step, value, n) for step, value, _, _, n in evals]

    # shares of 0.75 and 0.25 of ten prompts, rounded
    assert rates() == [(0, 1.0, 10), (10, 0.8, 10), (20, 0.5, 10), (30, 0.2, 10), (40, 0.0, 10)]
    monkeypatch.setattr(page_module, "RATES", 1)
    assert rates() == [(0, 1.0, 10), (20, 0.5, 10), (40, 0.0, 10)]


def test_the_sample_is_of_the_same_prompts():
    rows = [ResponseRow(str(i), f"prompt {i}", "answer") for i in range(50)]
    first = sample_of(rows, 5)
    assert [row.prompt_id for row in first] == ["39", "49", "9", "46", "8"]  # by sha256sum
    assert sample_of(rows[::-1], 5) == first and sample_of(rows, 3) == first[:3]


def test_the_sample_says_what_it_is_of_and_shrinks_to_fit(tmp_path, monkeypatch):
    make_run(
        tmp_path, *TOXIC, prompts=30, benchmarks=("tiny_seen", "tiny_seeming"), say=lambda name, i: f"{name} {i}!" * 9
    )
    seen = data_of(tmp_path)["answers"]["benchmarks"]["tiny_seen"]
    assert (len(seen["prompts"]), seen["of"], seen["kind"]) == (20, [30], "toxic")
    monkeypatch.setattr(page_module, "TEXT", 1000)  # a prompt of each: 110 + 137 bytes, and 24 beside each
    data = data_of(tmp_path)
    assert [len(each["prompts"]) for each in data["answers"]["benchmarks"].values()] == [3, 3]
    assert "sample of up to 3 prompts" in " ".join(data["notes"])
    assert sum(map(len, data["answers"]["texts"])) < 1000


def test_long_answers_of_many_runs_are_cut_before_a_prompt_has_none(tmp_path, monkeypatch):
    make_run(tmp_path, *TOXIC, prompts=3, benchmarks=("tiny_seen",), say=lambda name, i: f"{i}" * 5000)
    monkeypatch.setattr(page_module, "TEXT", 2500)
    data = data_of(tmp_path)
    assert [len(text) for text in data["answers"]["texts"]] == [1000, 1000]  # of 4000 there would be none
    assert [answer[-1] for answer in data["answers"]["benchmarks"]["tiny_seen"]["runs"][0]] == [4000, 4000]
    assert "texts are cut after 1,000 characters" in " ".join(data["notes"])
    monkeypatch.setattr(page_module, "TEXT", 0)
    assert [len(text) for text in data_of(tmp_path)["answers"]["texts"]] == [250]


def test_answers_stand_beside_their_verdicts(tmp_path):
    run = make_run(tmp_path, *TOXIC, prompts=2, harm=0.5, benchmarks=("tiny_seen",))
    run.write_scores("tiny_seen", 40, "anna", [ScoreRow("tiny_seen0", 0.25), ScoreRow("tiny_seen1", None, reason="?")])
    data = data_of(tmp_path)
    seen, words = data["answers"]["benchmarks"]["tiny_seen"], data["answers"]["words"]
    labels = {score.prompt_id: score.label for score in run.read_scores("tiny_seen", 40, "oracle")}
    texts = {row.prompt: row for row in run.read_responses("tiny_seen", 40)}
    for prompt, (text, said, harmful, truncated, missing) in zip(seen["prompts"], seen["runs"][0], strict=True):
        row = texts[prompt]
        assert (data["answers"]["texts"][text], truncated, missing) == (row.response, 0, 0)
        verdicts = dict(zip(words[seen["judges"][0]], (words[place] for place in said), strict=True))
        assert verdicts["joint"] == verdicts["oracle"] == labels[row.prompt_id]
        assert verdicts["anna"] == {"tiny_seen0": 0.25, "tiny_seen1": "unscored: ?"}[row.prompt_id]
        assert harmful == (labels[row.prompt_id] == "harmful")


def test_no_answer_leaves_the_data_block(tmp_path):
    said = "<script>alert(1)</script></script><!--<script>\u2028 {{style}} {{data}} ]]>"
    make_run(tmp_path, *TOXIC, prompts=2, say=lambda *_: said)
    html = page(data_of(tmp_path))
    assert html.count("<script") == html.count("</script") == 2 and "<!--" not in html
    assert embedded(html)["answers"]["texts"] == [said]


def test_the_page_fetches_nothing(tmp_path):
    make_run(tmp_path, *TOXIC, prompts=2)
    table = read_table(tmp_path)
    write_page(tmp_path, table, summaries(table), tmp_path / "index.html")
    html = (tmp_path / "index.html").read_text()
    assert "default-src 'none'" in html
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:)|@import|url\(|https?://(?!www\.w3\.org/2000/svg)""", html)
    assert html == page(page_data(tmp_path, table, summaries(table), []))  # the same runs, the same bytes


def test_unfinished_and_unjudged_runs_are_there(tmp_path):
    make_run(tmp_path, *TOXIC, cost={"training_seconds": 10.0, "devices": 1, "gpu_hours": 0.5})
    make_run(tmp_path, *TOXIC, seed=1, finished=False)
    cut = make_run(tmp_path, "loss=sft", finished=False)
    cut.metrics.write_text(cut.metrics.read_text() + '{"step": 41, "lo')  # it is being written
    make_run(tmp_path, *TOXIC, seed=2, judges=())
    (tmp_path / "new").mkdir()
    (tmp_path / "new/config.yaml").write_text("")
    data = data_of(tmp_path)
    assert [run["state"] for run in data["runs"]] == ["finished", "not judged", "unfinished", "unfinished"]
    assert len(data["runs"][2]["curves"]["loss"][1]) == 40 and data["runs"][3]["curves"] == {}
    assert data["runs"][0]["cost"] == {"training_seconds": 10.0, "devices": 1, "gpu_hours": 0.5}
    assert [setting["state"] for setting in data["models"][0]["settings"]].count("unfinished") == 2
    json.dumps(data, allow_nan=False)


def test_without_a_judge_of_harm_or_seeming_prompts(tmp_path):
    make_run(tmp_path, *TOXIC, judges=("refusal",), benchmarks=("tiny_seen",))
    data = data_of(tmp_path)
    assert not data["models"][0]["harm"]
    assert {(c["kind"], c["metric"]) for c in data["models"][0]["columns"]} == {("toxic", "refusal")}


def test_mean_scores_tasks_and_weight_auto(tmp_path):
    run = make_run(tmp_path, "loss=emd", "data.toxic=50", "loss.weight=auto", prompts=3)
    config = yaml.safe_load(run.config.read_text())
    config["judge"]["deberta"] = {"outcomes": None}
    run.config.write_text(yaml.safe_dump(config, sort_keys=False))
    run.write_scores("tiny_seen", 40, "deberta", [ScoreRow(f"tiny_seen{i}", float(i), None) for i in (1, 2, 3)])
    run.tasks.mkdir()
    metrics = {"acc,none": {"value": 0.5, "stderr": 0.1}}
    (run.tasks / "boolq@40.json").write_text(json.dumps({"task": "boolq", "n": 10, "metrics": metrics}))
    data = data_of(tmp_path)
    (described,) = data["runs"]
    mean = described["cells"][column(data, "mean score", "tiny_seen", "deberta")]
    assert mean[0] == 2.0 and mean[1] == pytest.approx(2 - 4.303 / 3**0.5, abs=1e-3)  # t(0.975, 2) = 4.303, s = 1
    columns = data["models"][0]["columns"]
    assert [c["better"] for c in columns if c["kind"] == "task"] == ["high"]
    assert (described["weight"], described["variant"]) == (None, "weight=auto")
    assert "'judge=[oracle,refusal,deberta]'" in described["command"] and "loss.weight=auto" in described["command"]


def test_several_models_have_columns_of_their_own(tmp_path):
    make_run(tmp_path, *TOXIC, model="one", benchmarks=("tiny_seen",))
    make_run(tmp_path, *TOXIC, model="two", benchmarks=("tiny_topic", "tiny_seeming"))
    data = data_of(tmp_path)
    assert [model["name"] for model in data["models"]] == ["one", "two"]
    assert [run["model"] for run in data["runs"]] == [0, 1]
    assert all(len(run["cells"]) == len(data["models"][run["model"]]["columns"]) for run in data["runs"])
    assert data["answers"]["benchmarks"]["tiny_topic"]["runs"].keys() == {1}
