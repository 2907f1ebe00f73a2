"""What judges are worth: what they say beside what people say of the same answers.

python -m tasft.agree agreement=xstest judge=[refusal]
"""

import json
import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from tasft.config import checked, entry
from tasft.errors import UserError
from tasft.schema import RunConfig

if TYPE_CHECKING:  # slow to import, and a mistake answers at once without them
    import pandas as pd

    from tasft.evaluate.judging import Asked
    from tasft.result.rows import ResponseRow, ScoreRow

log = logging.getLogger(__name__)

OTHER = "other"  # what a judge or a person says that the other has no word for
WIDTH = 140  # columns, where the output is no terminal


@dataclass(frozen=True)
class Labelled:
    """The answers of the file that people have labelled: an outcome each, or a rating each."""

    rows: "list[ResponseRow]"
    outcomes: list[str] | None
    ratings: list[float] | None
    unlabelled: int


@dataclass(frozen=True)
class Agreed:
    """What one judge says beside people on one question.

    compared: the outcomes that both have words for, all others being one; `<outcome> or not`, of these one; or the
    judge's score for one outcome, or with ratings. n answers have both a label and a score; unscored ones no score.
    auroc: of higher scores for that outcome. Empty where it makes no sense or is undefined.
    """

    judge: str
    compared: str
    n: int
    unscored: int
    agreement: float | None = None
    agreement_low: float | None = None
    agreement_high: float | None = None
    kappa: float | None = None
    kappa_low: float | None = None
    kappa_high: float | None = None
    auroc: float | None = None
    auroc_low: float | None = None
    auroc_high: float | None = None
    rank_correlation: float | None = None
    rank_correlation_low: float | None = None
    rank_correlation_high: float | None = None


def agree(cfg: DictConfig) -> None:
    """Run the judges over `agreement.source`; print and write how far they agree with its labels.

    Writes agreement.csv, confusion.csv and table.md into `agreement.out`, and each judge's scores as soon as they are
    there: the same command judges again only what is unscored. A judge that cannot be had is left out. UserError before
    anything is judged where file, labels and judges do not fit, and in the end for judges that could not go on.
    """
    config = checked(cfg)
    if not config.judge:
        raise UserError("no judge is chosen: give judge=[refusal], or more of them")
    labelled = _labelled(config)
    for name, node in config.judge.items():
        _check_fits(name, node, config, labelled)
    import pandas as pd

    from tasft import parts
    from tasft.evaluate.judging import judge_all, relabelled, say_what_failed
    from tasft.result.rows import ScoreRow, read_rows, write_atomically
    from tasft.result.store import check_writable

    out = Path(config.agreement.out)
    check_writable(out)
    judges, _ = parts.judges(config)
    todo = [_asked(out, name, config.judge[name], labelled.rows) for name in judges]
    failed = judge_all(judges, todo)
    lines: list[Agreed] = []
    confusions: list[dict[str, Any]] = []
    for asked in todo:
        if asked.judge in failed:
            continue
        node = config.judge[asked.judge]
        scores = read_rows(asked.file, ScoreRow)
        if asked.file == _files(out, asked.judge, node, labelled.rows)[0]:
            scores = relabelled(node, scores)  # by today's threshold
        of_judge, cells = _agreed(asked.judge, node.get("outcomes") or {}, labelled, scores)
        lines += of_judge
        confusions += cells
    if not lines:
        say_what_failed(failed)
    table = pd.DataFrame([asdict(line) for line in lines]).astype(object)
    write_atomically(out / "agreement.csv", table.to_csv(index=False))
    confusion = pd.DataFrame(confusions, columns=["judge", "people", "says", "answers"])
    write_atomically(out / "confusion.csv", confusion.to_csv(index=False))
    sections = _sections(config, labelled, lines, confusion)
    write_atomically(out / "table.md", _markdown(sections))
    _print(sections)
    log.info("wrote agreement.csv, confusion.csv and table.md to %s", out)
    say_what_failed(failed)


def _labelled(config: RunConfig) -> Labelled:
    """The answers with a label; UserError where a column is missing or a label stands for nothing."""
    from tasft.result.outcome import ANSWERED, PRECEDENCE
    from tasft.result.rows import ResponseRow
    from tasft.source import read_rows

    source, labels = config.agreement.source, config.agreement.labels
    key = "agreement.source"
    for name in ("prompt", "response", "label"):
        if getattr(source.fields, name) is None:
            raise UserError(f"{key}.fields names no {name}: give {key}.fields.{name}=<column>")
    known = (*PRECEDENCE, ANSWERED)
    for label, outcome in labels.items():
        if outcome not in (*known, None):
            raise UserError(f"agreement.labels.{label}={outcome}: it should be one of {', '.join(known)}")
    rows, said, places, unlabelled = [], [], [], 0
    for number, row in enumerate(read_rows(source, key)[: source.count]):
        prompt, response = row.text(str(source.fields.prompt)), row.text(str(source.fields.response))
        if source.fields.label not in row.values:
            row.text(str(source.fields.label))  # says what is there instead
        label = _text(row.values[str(source.fields.label)])
        if not label:
            unlabelled += 1
            continue
        reference, category = (
            None if column is None else row.text(column) for column in (source.fields.reference, source.fields.category)
        )
        rows.append(ResponseRow(str(number), prompt, response, reference=reference, category=category))
        said.append(label)
        places.append(row.place)
    if not rows:
        raise UserError(f"{source.path or source.id} has no answer with a label in {source.fields.label}")
    ratings = _numbers(said) if not labels else None
    if ratings is not None:
        return Labelled(rows, None, ratings, unlabelled)
    stands_for = {str(label): outcome or ANSWERED for label, outcome in labels.items()}
    stands_for = stands_for or {outcome: outcome for outcome in known}
    for label, place in zip(said, places, strict=True):
        if label not in stands_for:
            raise UserError(
                f"{place}: label {label!r} is not among {', '.join(stands_for)}: say what each label stands for,"
                f" '+agreement.labels={{{label}: harmful}}' (or {', '.join(known[2:])})"
            )
    return Labelled(rows, [stands_for[label] for label in said], None, unlabelled)


def _text(label: Any) -> str:
    if label is None:
        return ""
    return label.strip() if isinstance(label, str) else json.dumps(label)


def _numbers(labels: Sequence[str]) -> list[float] | None:
    try:
        return [float(label) for label in labels]
    except ValueError:
        return None


def _check_fits(name: str, node: Mapping[str, Any], config: RunConfig, labelled: Labelled) -> None:
    """UserError where judge and labels have no word in common, or the judge looks at what the file does not have."""
    for column in node.get("needs", []):
        if getattr(config.agreement.source.fields, column) is None:
            raise UserError(
                f"judge {name} needs a {column} for each answer: give agreement.source.fields.{column}=<column>,"
                f" or leave it out of judge=[{','.join(config.judge)}]"
            )
    outcomes = node.get("outcomes") or {}
    if labelled.outcomes is not None and outcomes and not set(outcomes.values()) & set(labelled.outcomes):
        words = ", ".join(dict.fromkeys(each for each in outcomes.values() if each is not None))
        raise UserError(
            f"judge {name} tells {words}, the file's labels stand for {', '.join(sorted(set(labelled.outcomes)))}:"
            " there is nothing to compare; mend agreement.labels, or leave the judge out"
        )


def _asked(out: Path, name: str, node: Mapping[str, Any], rows: "list[ResponseRow]") -> "Asked":
    """The answers for one judge, and the file of its scores of them."""
    from tasft.evaluate.judging import Asked

    now, *earlier = _files(out, name, node, rows)
    return Asked(name, lambda: rows, next((file for file in earlier if file.is_file()), now))


def _files(out: Path, name: str, node: Mapping[str, Any], rows: "list[ResponseRow]") -> list[Path]:
    """Where the scores are kept by now, and were before: named by these very answers and what decides the scores."""
    from tasft.evaluate.judging import names
    from tasft.result.store import identity

    digests = [identity({"judge": each, "rows": [asdict(row) for row in rows]}) for each in names(node)]
    return [out / "scores" / f"{name}-{digest}.jsonl" for digest in digests]


def _agreed(
    name: str, outcomes: Mapping[str, str | None], labelled: Labelled, scores: "Sequence[ScoreRow]"
) -> tuple[list[Agreed], list[dict[str, Any]]]:
    """The lines of one judge, and the cells of its confusion table."""
    from tasft.result.agreement import auroc, rank_correlation
    from tasft.result.outcome import ANSWERED, PRECEDENCE

    at = [i for i, score in enumerate(scores) if score.score is not None]
    values = [float(scores[i].score or 0.0) for i in at]
    n, unscored = len(at), len(scores) - len(at)
    if labelled.ratings is not None:
        found = rank_correlation([labelled.ratings[i] for i in at], values)
        measured = {
            "rank_correlation": found.value,
            "rank_correlation_low": found.low,
            "rank_correlation_high": found.high,
        }
        return [Agreed(name, "score and rating", n, unscored, **measured)], []
    people = [labelled.outcomes[i] for i in at] if labelled.outcomes is not None else []

    def area(outcome: str) -> dict[str, float | None]:
        found = auroc([each == outcome for each in people], values)
        return {"auroc": found.value, "auroc_low": found.low, "auroc_high": found.high}

    if not outcomes:
        there = [outcome for outcome in (*PRECEDENCE, ANSWERED) if outcome in people]
        return [Agreed(name, f"score for {outcome}", n, unscored, **area(outcome)) for outcome in there], []
    labels = [str(scores[i].label) for i in at]
    strange = next((label for label in labels if label not in outcomes), None)
    if strange is not None:
        raise UserError(
            f"judge {name} calls an answer {strange!r}, which is not among its outcomes ({', '.join(outcomes)}):"
            f" say what it stands for, '+judge.{name}.outcomes.{strange}=harmful' (or another outcome, or null)"
        )
    says = [outcomes[label] or OTHER for label in labels]
    shared = [o for o in PRECEDENCE if o in outcomes.values() and o in (labelled.outcomes or [])]
    graded = "harmful" in shared and not set(values) <= {0.0, 1.0}
    questions = {", ".join([*shared, OTHER]): shared} if len(shared) > 1 else {}
    questions |= {f"{outcome} or not": [outcome] for outcome in shared}
    lines = []
    for question, of in questions.items():
        first, second = ([each if each in of else OTHER for each in side] for side in (people, says))
        more = area("harmful") if graded and of == ["harmful"] else {}
        lines.append(Agreed(name, question, n, unscored, **_measures(first, second), **more))
    counts = Counter(zip(people, labels, strict=True))
    confusion = [
        {"judge": name, "people": person, "says": label, "answers": counts[person, label]}
        for person in (*PRECEDENCE, ANSWERED)
        if person in people
        for label in outcomes
        if label in labels
    ]
    return lines, confusion


def _measures(people: Sequence[str], judge: Sequence[str]) -> dict[str, float | None]:
    from tasft.result.agreement import kappa
    from tasft.result.statistics import Rate

    rate = Rate(sum(a == b for a, b in zip(people, judge, strict=True)), len(people))
    found = kappa(people, judge)
    return {
        "agreement": rate.value,
        "agreement_low": rate.low,
        "agreement_high": rate.high,
        "kappa": found.value,
        "kappa_low": found.low,
        "kappa_high": found.high,
    }


Sections = list[tuple[str, list[list[str]], str]]  # title, cells with the header first, note


def _sections(config: RunConfig, labelled: Labelled, lines: Sequence[Agreed], confusion: "pd.DataFrame") -> Sections:
    source = config.agreement.source
    named = Path(str(source.path or source.id)).name
    count = f"{len(labelled.rows):,} answers that people have labelled"
    count += f", {labelled.unlabelled:,} without a label left out" if labelled.unlabelled else ""
    measures = [
        name
        for name in ("agreement", "kappa", "auroc", "rank_correlation")
        if any(getattr(line, name) is not None for line in lines)
    ]
    header = ["judge", "compared", *(name.replace("_", " ") for name in measures), "n", "unscored"]
    cells = [
        [line.judge, line.compared, *(_cell(line, name) for name in measures), str(line.n), str(line.unscored)]
        for line in lines
    ]
    notes = [
        "low to high: 95 % intervals: Wilson's for agreement, Newcombe's (2006, method 5) for AUROC, else percentiles"
        " over seeded bootstrap draws of answers; of a kappa of 1, from Wilson's for 0 of n that differ. A value alone:"
        " the answers do not tell how sure it is."
    ]
    if any(line.compared.endswith(OTHER) for line in lines):
        notes.append(f"{OTHER}: what judge or people have no word for.")
    sections = [(f"Judges beside people: {named}, {count}", [header, *cells], " ".join(notes))]
    for judge, of_judge in confusion.groupby("judge", sort=False):
        table = of_judge.pivot(index="people", columns="says", values="answers")
        table = table.loc[list(dict.fromkeys(of_judge["people"])), list(dict.fromkeys(of_judge["says"]))]
        body = [[str(person), *(str(count) for count in counts)] for person, *counts in table.itertuples()]
        header = ["people", *(f"{judge}: {said}" for said in table.columns)]
        sections.append(
            (f"Answers by what people (rows) and {judge} (columns, its own labels) say", [header, *body], "")
        )
    return sections


def _cell(line: Agreed, name: str) -> str:
    value, low, high = (getattr(line, f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f} to {high:.3f}]"


def _markdown(sections: Sections) -> str:
    parts = []
    for title, cells, note in sections:
        ruled = [cells[0], [":--", *["--:"] * (len(cells[0]) - 1)], *cells[1:]]
        parts += [f"## {title}", "\n".join("| " + " | ".join(line) + " |" for line in ruled), note]
    return "\n\n".join(part for part in parts if part) + "\n"


def _print(sections: Sections) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    for title, cells, note in sections:
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for number, name in enumerate(cells[0]):
            table.add_column(Text(name), justify="right" if number else "left")
        for line in cells[1:]:
            table.add_row(*map(Text, line))
        console.print(Text(title, style="bold"))
        console.print(table)
        if note:
            console.print(Text(note, style="dim"))
        console.print()


def main() -> int:
    """Run the command line; the exit code."""
    return entry(agree, "agree")


if __name__ == "__main__":
    sys.exit(main())
