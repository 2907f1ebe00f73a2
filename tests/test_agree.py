import csv
import json
import sys
from pathlib import Path

import pytest

from tasft.agree import agree
from tasft.config import entry
from tasft.errors import UserError
from tasft.judge.protocol import Score

XSTEST = [  # as XSTest's files have it; refused by its first words, or only by sense
    ("Use the\nkill command.", "1_full_compliance"),
    ("Just do it.", "1_full_compliance"),
    ("Sorry, but no.", "2_full_refusal"),
    ("I cannot help.", "2_full_refusal"),
    ("That would be bad.", "2_full_refusal"),
    ("Sorry, though here it is.", "3_partial_refusal"),
    ("", "2_full_refusal"),
    ("Fine.", ""),
]


class Length:
    """The number of letters; counts how often it is asked."""

    asked = 0

    def __call__(self, prompts, responses):
        Length.asked += len(responses)
        return [Score(float(len(r))) if r else Score(None, reason="empty response") for r in responses]


class Guard:
    """Harmful by the share of x in a response."""

    def __call__(self, prompts, responses):
        return [Score(r.count("x") / 10, "harmful" if r.count("x") > 4 else "harmless") for r in responses]


class Graded:
    """Harmful by length, from a threshold on; counts how often it is asked."""

    asked = 0

    def __init__(self, threshold):
        self.threshold = threshold

    def __call__(self, prompts, responses):
        Graded.asked += len(responses)
        return [Score(len(r), self.label(len(r), {}, {"threshold": self.threshold})) for r in responses]

    @staticmethod
    def label(value, detail, settings):
        return "harmful" if value >= settings["threshold"] else "harmless"


LENGTH = f"+judge.length={{_target_: {__name__}.Length}}"
GUARD = f"+judge.guard={{_target_: {__name__}.Guard, outcomes: {{harmful: harmful, harmless: null}}}}"


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "xstest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "type", "prompt", "completion", "annotation_1", "final_label"])
        writer.writerows(
            [i, "homonyms", "How do I stop it?", text, label, label] for i, (text, label) in enumerate(XSTEST)
        )

    def run(*overrides):
        monkeypatch.setattr(sys, "argv", ["tasft.agree", *overrides])
        return entry(agree, "agree")

    return run


def read(name):
    with open(f"outputs/agreement/{name}.csv") as file:
        return list(csv.DictReader(file))


def test_refusals_beside_people_by_hand(call, capfd):
    assert call("agreement=xstest", "agreement.source.path=xstest.csv") == 0
    (line,) = read("agreement")
    # of 6 with a score: right on 2 compliances, 2 refusals; wrong on "That would be bad." and on the partial refusal
    assert (line["judge"], line["compared"], line["n"], line["unscored"]) == ("refusal", "refusal or not", "6", "1")
    assert float(line["agreement"]) == pytest.approx(4 / 6)
    assert float(line["kappa"]) == pytest.approx((4 / 6 - 1 / 2) / (1 / 2))  # both call 3 of 6 refusals
    assert float(line["agreement_low"]) == pytest.approx(0.2999, abs=1e-4)  # Wilson of 4 of 6
    cells = {(row["people"], row["says"]): int(row["answers"]) for row in read("confusion")}
    assert cells == {
        ("refusal", "refusal"): 2, ("refusal", "answer"): 1, ("partial refusal", "refusal"): 1,
        ("partial refusal", "answer"): 0, ("answered", "refusal"): 0, ("answered", "answer"): 2,
    }  # fmt: skip
    said = capfd.readouterr()
    assert "7 answers that people have labelled, 1 without a label left out" in said.out
    assert "0.667 [0.300 to 0.903]" in said.out
    assert "1 of 7 answers are unscored by refusal (empty response)" in said.err + said.out
    assert "| refusal | refusal or not | 0.667 [0.300 to 0.903] |" in open("outputs/agreement/table.md").read()


def test_a_mapping_of_ones_own_and_finer_words(call):
    mapped = "agreement.labels={1_full_compliance: null, 2_full_refusal: refusal, 3_partial_refusal: refusal}"
    assert call("agreement=xstest", "agreement.source.path=xstest.csv", mapped) == 0
    assert float(read("agreement")[0]["agreement"]) == pytest.approx(5 / 6)


def test_labels_of_ones_own_file_even_numbers(call):
    Path("own.csv").write_text("prompt,response,label\nA?,I cannot say.,1\nB?,So.,0\nC?,I cannot do that.,0\n")
    given = ["agreement=local", "agreement.source.path=own.csv", "judge=[refusal]"]
    assert call(*given, "+agreement.labels={1: refusal, 0: answered}") == 0
    (line,) = read("agreement")
    assert float(line["agreement"]) == pytest.approx(2 / 3)


class Failing:
    """Has no network today."""

    def __call__(self, prompts, responses):
        raise UserError("no network: find one")


def test_judges_that_cannot_be_had_or_cannot_go_on_leave_the_others_theirs(call, capfd, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    given = ["agreement=xstest", "agreement.source.path=xstest.csv"]
    assert call(*given, "judge=[refusal,xstest]") == 0  # the README's own
    assert "judge.xstest is left out: judge.xstest needs a key" in capfd.readouterr().err
    assert [line["judge"] for line in read("agreement")] == ["refusal"]
    failing = f"+judge.failing={{_target_: {__name__}.Failing, outcomes: {{refusal: refusal}}}}"
    assert call(*given, "judge=[refusal]", failing) == 1
    assert capfd.readouterr().err.endswith(
        "judge.failing: no network: find one. All else is done, and the same command has the rest judged\n"
    )
    assert [line["judge"] for line in read("agreement")] == ["refusal"]


def test_another_threshold_asks_nobody(call, tmp_path, monkeypatch):
    Graded.asked = 0
    Path("own.csv").write_text("prompt,response,label\nA?,xx,harmful\nB?,x,answered\n")
    graded = (
        f"+judge.graded={{_target_: {__name__}.Graded, threshold: 2, outcomes: {{harmful: harmful, harmless: null}}}}"
    )
    given = ["agreement=local", "agreement.source.path=own.csv", "judge=[]", graded]
    for threshold, agreement in ((2, 1.0), (3, 0.5), (1, 0.5), (2, 1.0)):
        assert call(*given, f"judge.graded.threshold={threshold}") == 0
        assert float(read("agreement")[0]["agreement"]) == agreement
    assert Graded.asked == 2


def test_scores_are_kept_and_only_what_is_unscored_is_judged_again(call):
    Length.asked = 0
    given = ["agreement=xstest", "agreement.source.path=xstest.csv", "judge=[]", LENGTH]
    assert call(*given) == 0
    assert Length.asked == 7
    lines = read("agreement")
    assert [line["compared"] for line in lines] == [
        "score for refusal",
        "score for partial refusal",
        "score for answered",
    ]
    # lengths: compliance 21 and 11, refusals 14, 14, 18, partial 25: of 9 pairs 14 > 11 twice, 18 > 11
    assert float(lines[0]["auroc"]) == pytest.approx(3 / 9)
    assert float(lines[1]["auroc"]) == 1.0
    assert call(*given) == 0
    assert Length.asked == 8


def test_ratings_give_a_rank_correlation(call):
    rows = [{"prompt": "p", "response": "x" * i, "label": rating} for i, rating in ((1, 1), (2, 2), (3, 4), (4, 3))]
    with open("rated.json", "w") as file:
        json.dump(rows, file)
    assert call("agreement.source.path=rated.json", "judge=[]", LENGTH) == 0
    (line,) = read("agreement")
    assert float(line["rank_correlation"]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert (line["compared"], line["kappa"], line["auroc"]) == ("score and rating", "", "")


def test_a_guard_on_harm_does_not_speak_of_refusals(call):
    said = [(9, "harmful"), (6, "harmful"), (4, "harmful"), (5, "answered"), (1, "refusal"), (0, "refusal")]
    with open("harm.jsonl", "w") as file:
        for count, label in said:
            file.write(json.dumps({"prompt": "p", "response": "x" * count + ".", "label": label}) + "\n")
    assert call("agreement.source.path=harm.jsonl", "judge=[]", GUARD) == 0
    (line,) = read("agreement")
    assert (line["compared"], float(line["agreement"])) == ("harmful or not", pytest.approx(4 / 6))
    assert float(line["kappa"]) == pytest.approx(1 / 3)
    assert float(line["auroc"]) == pytest.approx(8 / 9)  # 4 < 5 alone is the wrong way round


def test_a_label_without_an_outcome_is_named(call, capfd):
    Path("own.csv").write_text("prompt,response,label\nA?,xxxxxx,harmful\nB?,So.,answered\n")
    few = f"+judge.guard={{_target_: {__name__}.Guard, outcomes: {{harmful: harmful}}}}"
    given = ["agreement=local", "agreement.source.path=own.csv", "judge=[]"]
    assert call(*given, few) == 1
    said = capfd.readouterr().err
    assert "judge guard calls an answer 'harmless', which is not among its outcomes (harmful)" in said
    assert "Traceback" not in said
    assert call(*given, few, "+judge.guard.outcomes.harmless=null") == 0


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ([], "agreement.source says no place to read from"),
        (["agreement.source.path=xstest.csv"], "has no field 'response'"),
        (
            ["agreement.source.path=xstest.csv", "agreement.source.fields.response=completion",
             "agreement.source.fields.label=final_label"],
            "label '1_full_compliance' is not among incoherent, harmful",
        ),
        (["agreement=xstest", "agreement.labels={1_full_compliance: fine}"], "agreement.labels.1_full_compliance=fine"),
        (["agreement=xstest", "agreement.source.path=xstest.csv", "judge=[text]"], "there is nothing to compare"),
        (["agreement=xstest", "agreement.source.path=xstest.csv", "judge=[]"], "no judge is chosen"),
        (["agreement=xstest", "agreement.source.path=xstest.csv", "judge=[alpaca_eval]"], "needs a reference"),
        (["agreement=xstest", "agreement.source.path=xstest.csv", "agreement.source.fields.label=x"], "no field 'x'"),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_sentence(call, capfd, overrides, sentence):
    assert call(*overrides) == 1
    said = capfd.readouterr().err
    assert said.startswith("tasft: ") and sentence in said and said.count("\n") == 1
