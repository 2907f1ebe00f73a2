"""The workspace by its serialised form, which wandb-workspaces gives by a private method alone."""

import json
import re

import pytest
import wandb

from tasft.result.series import HEADLINES
from tasft.workspace import GROUPED_BY, LINES, main


def logged(root, name, entity, project):
    (root / name).mkdir(parents=True)
    (root / name / "wandb.json").write_text(json.dumps({"run": {"entity": entity, "project": project, "id": name}}))


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb.teardown()


def test_the_workspace_compares_runs_with_seeds_averaged(tmp_path):
    logged(tmp_path / "outputs", "offline", None, "mine")
    logged(tmp_path / "outputs", "online", "team", "mine")
    file = tmp_path / "made" / "workspace.json"
    assert main([str(tmp_path / "outputs"), "--json", str(file), "--name", "harm by λ"]) == 0
    made = json.loads(file.read_text())
    assert (made["entity"], made["project"], made["displayName"]) == ("team", "mine", "harm by λ")
    section = made["spec"]["section"]
    (runs,) = section["runSets"]
    assert [each["name"] for each in runs["grouping"]] == [f"cell.value.{key}" for key in GROUPED_BY]
    assert section["settings"]["xAxis"] == "step"
    assert runs["filters"]["filters"][0]["value"] == ["train", "evaluate"]
    sections = {each["name"]: each["panels"] for each in section["panelBankConfig"]["sections"]}
    assert list(sections) == ["At the end", *LINES, "Joint outcomes by benchmark"]
    lines = [panel["config"] for panels in sections.values() for panel in panels if "Line" in panel["viewType"]]
    assert all(
        line["xAxis"] == "step" and line["groupAgg"] == "mean" and line["groupArea"] == "stddev" for line in lines
    )
    keys = {key for line in lines for key in line["metrics"]}
    assert keys >= {"eval/harm", "eval/over_refusal", "train/safe_loss", "train/toxic_loss", "train/weight"}
    assert {key.removeprefix("eval/") for key in keys if key.startswith("eval/")} == set(HEADLINES)
    (regex, *_) = (line["metricRegex"] for line in lines if line.get("useMetricRegex"))
    assert re.fullmatch(regex, "eval/tiny_seen/joint/harmful") and not re.fullmatch(regex, "eval/a/oracle/harmful")
    bars = [panel["config"]["metrics"] for panel in sections["At the end"] if panel["viewType"] == "Bar Chart"]
    assert bars == [["final/harm"], ["final/over_refusal"], ["final/helpful"]]
    scatters = [panel["config"] for panel in sections["At the end"] if panel["viewType"] == "Scatter Plot"]
    assert [(each["xAxis"], each["yAxis"]) for each in scatters] == [
        ("summary:final/over_refusal", "summary:final/harm"), ("config:cell.value.toxic", "summary:final/harm"),
    ]  # fmt: skip


def test_mistakes_are_said_in_one_sentence(tmp_path, capsys):
    root = tmp_path / "outputs"

    def said(*arguments):
        assert main(list(arguments)) == 1
        (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("tasft: ")]
        return line

    assert "saving a workspace needs an account: run wandb login first, or use --json FILE" in said("team/project")
    root.mkdir()
    assert "has been logged to W&B: run with logger=wandb, or name the project" in said(str(root))
    logged(root, "one", "team", "a")
    logged(root, "two", "team", "b")
    assert "lie in several projects: name one of team/a, team/b" in said(str(root))
    assert "is neither a folder nor a W&B project" in said("a/b/c", "--json", "x")
    (tmp_path / "file").write_text("")
    assert "cannot write" in said("team/project", "--json", str(tmp_path / "file" / "x.json"))
