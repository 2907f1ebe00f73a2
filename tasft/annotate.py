"""People as one more judge: `python -m tasft.annotate export outputs`, label the sheet, `... import sheet.csv`.

The sheet hides which run an answer is from: its rows are shuffled, and which run an id stands for is in a file beside
it that annotators need not see. Equal answers of several runs to a prompt are one row. Imports no torch.
"""

import argparse
import csv
import hashlib
import io
import json
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasft.errors import UserError
from tasft.result.outcome import ANSWERED, JOINT
from tasft.result.rows import ScoreRow, write_atomically
from tasft.result.store import RunDir, read_config
from tasft.result.table import OUTCOMES, finished_runs

LABELS = (*OUTCOMES, ANSWERED)  # answered: coherent, neither harmful nor a refusal
MISSING = "not annotated"
LABEL = "label"  # the last column's header begins so; the labels that are allowed follow


@dataclass(frozen=True)
class Place:
    """One answer of one run."""

    run: str  # relative to the folder of the runs
    benchmark: str
    step: int
    prompt_id: str


def export(
    root: Path, out: Path, per_run: int, seed: int, benchmarks: Sequence[str] = (), labels: Sequence[str] = LABELS
) -> tuple[int, int]:
    """Write the sheet `out` and its key; the number of rows, and of the answers that they stand for.

    From each finished run under `root` `per_run` answers of its last step, dealt evenly over its benchmarks, to the
    same prompts wherever runs have the same benchmarks; a larger `per_run` with the same seed only adds prompts.
    UserError where there is nothing to label, or where a sheet is there already: somebody may have labelled it.
    """
    key_file = _key_file(out)
    for file in (out, key_file):
        if file.exists():
            raise UserError(f"{file} is there already, and may hold somebody's labels: move it, or give another --out")
    unknown = [label for label in labels if label not in LABELS]
    if unknown or not labels:
        raise UserError(f"--labels {','.join(unknown)}: there are {', '.join(LABELS)}")
    rows: dict[str, tuple[str, str, list[Place]]] = {}
    for name, run in finished_runs(root).items():
        for prompt, response, place in _sample(run, name, per_run, seed, benchmarks):
            digest = f"a{_digest(seed, prompt, response)[:10]}"  # a letter first: 1234e56 is a number to a spreadsheet
            rows.setdefault(digest, (prompt, response, []))[2].append(place)
    there = {benchmark for run in finished_runs(root).values() for benchmark, _ in run.responses_present()}
    unknown = [name for name in benchmarks if name not in there]
    if unknown:
        raise UserError(f"--benchmark {','.join(unknown)}: the runs have answers to {', '.join(sorted(there))}")
    if not rows:
        known = sorted({b for run in finished_runs(root).values() for b, _ in run.responses_present()})
        raise UserError(f"no answers to label under {root}: the runs have answers to {', '.join(known) or 'nothing'}")
    order = sorted(rows)  # by digest, so that equal arguments give equal sheets
    random.Random(seed).shuffle(order)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)  # a bare carriage return ends a row, too
    writer.writerow(["id", "prompt", "response", f"{LABEL}: {' | '.join(labels)}"])
    writer.writerows([digest, *map(_as_text, rows[digest][:2]), ""] for digest in order)
    key: dict[str, Any] = {"outputs": str(root.absolute()), "labels": list(labels), "ids": {}}
    for digest in order:
        _, response, places = rows[digest]
        places_said = [[place.run, place.benchmark, place.step, place.prompt_id] for place in places]
        key["ids"][digest] = {"sha256": _digest(response), "answers": places_said}
    write_atomically(key_file, json.dumps(key, indent=1, ensure_ascii=False) + "\n")
    write_atomically(out, "\ufeff" + text.getvalue())  # by the mark spreadsheets see that it is UTF-8
    return len(rows), sum(len(places) for _, _, places in rows.values())


def _as_text(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula: it begins with an apostrophe where it might be one.

    So does one that begins with an apostrophe itself: what stands behind the first is the text. What is labelled is
    known by its id, so that nothing is lost if a spreadsheet hides it.
    """
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "'")) else cell


def _sample(run: RunDir, name: str, per_run: int, seed: int, benchmarks: Sequence[str]) -> list[tuple[str, str, Place]]:
    """`per_run` prompts of a run, their answers and places: as many of each benchmark, by their hash with the seed."""
    last: dict[str, int] = {}
    for benchmark, step in run.responses_present():
        if not benchmarks or benchmark in benchmarks:
            last[benchmark] = max(step, last.get(benchmark, step))
    ranked = []
    for benchmark, step in last.items():
        rows = sorted(run.read_responses(benchmark, step), key=lambda row: _digest(seed, row.prompt_id))
        ranked += [(rank, _digest(seed, benchmark), benchmark, step, row) for rank, row in enumerate(rows[:per_run])]
    ranked.sort(key=lambda each: each[:2])
    return [
        (row.prompt, row.response, Place(name, benchmark, step, row.prompt_id))
        for _, _, benchmark, step, row in ranked[:per_run]
    ]


def bring_in(sheet: Path, name: str, key_file: Path | None = None, root: Path | None = None) -> tuple[int, int, int]:
    """Write what a sheet says as the scores of a judge `name` into its runs; how many rows, answers and runs.

    A score is 1.0 where the label is harmful, else 0.0; answers without a label are unscored. Labels of an earlier
    sheet under the same name stay where this one has none. Nothing is written where anything is wrong: UserError.
    """
    key_file = key_file or _key_file(sheet)
    key = _read_key(key_file)
    labelled = _read_sheet(sheet, key)
    if not labelled:
        raise UserError(f"{sheet} has no label yet: fill in its last column")
    root = root or Path(key["outputs"])
    given: dict[tuple[str, str, int], dict[str, str]] = defaultdict(dict)  # also where nothing is labelled yet
    hashes: dict[tuple[str, str, int, str], str] = {}
    for digest, each in key["ids"].items():
        for run_name, benchmark, step, prompt_id in each["answers"]:
            of_file = given[run_name, benchmark, step]
            if digest in labelled:
                of_file[prompt_id] = labelled[digest]
            hashes[run_name, benchmark, step, prompt_id] = each["sha256"]
    runs = {run_name: RunDir(root / run_name) for run_name, _, _ in given}
    outcomes = {label: None if label == ANSWERED else label for label in LABELS}
    for run in runs.values():
        if not run.config.is_file():
            raise UserError(f"there is no run {run.path}: give --outputs <the folder that holds the runs>")
        _check_name(name, run)
    scores: dict[tuple[str, str, int], list[ScoreRow]] = {}
    for (run_name, benchmark, step), labels in given.items():
        run = runs[run_name]
        answers = {row.prompt_id: row.response for row in run.read_responses(benchmark, step)}
        for prompt_id in labels:
            if _digest(answers.get(prompt_id, "")) != hashes[run_name, benchmark, step, prompt_id]:
                raise UserError(
                    f"{run.path} has other answers to {benchmark} than those in {sheet}: export a new sheet"
                )
        before = run.read_scores(benchmark, step, name) if run.has_scores(benchmark, step, name) else []
        labels = {row.prompt_id: row.label for row in before if row.label is not None} | labels
        scores[run_name, benchmark, step] = [_score(prompt_id, labels.get(prompt_id)) for prompt_id in answers]
    for run in runs.values():
        run.add_judge(name, {"people": True, "joint": False, "outcomes": outcomes})
    for (run_name, benchmark, step), rows in scores.items():
        runs[run_name].write_scores(benchmark, step, name, rows)
    return len(labelled), sum(map(len, given.values())), len(runs)


def _score(prompt_id: str, label: str | None) -> ScoreRow:
    if label is None:
        return ScoreRow(prompt_id, None, reason=MISSING)
    return ScoreRow(prompt_id, float(label == "harmful"), label)


def _check_name(name: str, run: RunDir) -> None:
    """UserError where the run has a judge of that name which is no person."""
    if name == JOINT:
        raise UserError(f"--name {JOINT} stands for all judges together: choose another")
    node = (read_config(run.config).get("judge") or {}).get(name)
    if node is not None and not node.get("people"):
        raise UserError(f"--name {name} is a judge of {run.path} already: choose another")


def _read_key(file: Path) -> dict[str, Any]:
    try:
        key = json.loads(file.read_text(encoding="utf-8"))
        if not all({"sha256", "answers"} <= each.keys() for each in key["ids"].values()):
            raise KeyError
        return {"outputs": key["outputs"], "labels": key["labels"], "ids": key["ids"]}
    except OSError:
        raise UserError(f"cannot read {file}, which says whose answers a sheet has: give --key <file>") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file} is damaged, or is no key of a sheet: give --key <file>") from None


def _read_sheet(file: Path, key: dict[str, Any]) -> dict[str, str]:
    """Id -> label of the rows that have one; UserError that names a row as a spreadsheet counts them."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"cannot read {file}: {why}") from None
    csv.field_size_limit(2**24)
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)  # spreadsheets in some languages write semicolons
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise UserError(f"{file} is no CSV file: {error}") from None
    names = [name.strip().lower() for name in rows[0]] if rows else []
    at_label = next((i for i, name in enumerate(names) if name.startswith(LABEL)), None)
    if "id" not in names or at_label is None:
        raise UserError(f"{file} has no columns id and {LABEL}: is it a sheet of python -m tasft.annotate export?")
    labelled: dict[str, str] = {}
    for number, row in enumerate(rows[1:], start=2):
        row = row + [""] * (len(names) - len(row))
        digest, label = row[names.index("id")].strip(), " ".join(row[at_label].lower().split())
        if not digest and not label:
            continue
        if digest not in key["ids"]:
            raise UserError(f"{file} row {number}: there is no id {digest!r} in its key: take the row out")
        if not label:
            continue
        if label not in key["labels"]:
            raise UserError(f"{file} row {number}: {label!r} is no label; use one of {', '.join(key['labels'])}")
        if labelled.setdefault(digest, label) != label:
            raise UserError(f"{file} row {number}: {digest} is {labelled[digest]!r} in another row: keep one of them")
    return labelled


def _key_file(sheet: Path) -> Path:
    return sheet.with_name(f"{sheet.stem}.key.json")


def _digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogatepass")).hexdigest()


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of at least 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tasft.annotate", description="Answers for people to label, without the names of their runs."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    out = commands.add_parser("export", help="write a sheet of answers to label, and its key")
    out.add_argument("outputs", type=Path, help="folder that holds the runs")
    out.add_argument("--out", type=Path, default=Path("sheet.csv"), help="the sheet (default: sheet.csv)")
    out.add_argument("--per-run", type=_at_least_one, default=20, help="answers of each run (default: 20)")
    out.add_argument("--seed", type=int, default=0, help="decides which prompts, and the order (default: 0)")
    out.add_argument("--benchmark", type=_words, default=[], help="of these benchmarks: a,b (default: all)")
    out.add_argument("--labels", type=_words, default=list(LABELS), help=f"(default: {','.join(LABELS)})")
    back = commands.add_parser("import", help="write a sheet's labels into its runs as a judge's scores")
    back.add_argument("sheet", type=Path, help="the sheet; rows without a label stay unscored")
    back.add_argument("--name", default="human", help="of the judge: one for each annotator (default: human)")
    back.add_argument("--key", type=Path, help="the sheet's key (default: beside it, <sheet>.key.json)")
    back.add_argument("--outputs", type=Path, help="folder that holds the runs, where it has moved")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code. Mistakes end in one sentence on stderr."""
    given = _parser().parse_args(argv)
    try:
        if given.command == "export":
            rows, answers = export(given.outputs, given.out, given.per_run, given.seed, given.benchmark, given.labels)
            said = f"wrote {given.out}: {rows} rows for {answers} answers; whose they are: {_key_file(given.out)}"
        else:
            rows, answers, runs = bring_in(given.sheet, given.name, given.key, given.outputs)
            said = f"{rows} labels by {given.name} for {answers} answers of {_counted(runs, 'run')}"
    except UserError as error:
        sys.stderr.write(f"tasft: {error}\n")
        return 1
    sys.stdout.write(said + "\n")
    return 0


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + "s" * (count != 1)


if __name__ == "__main__":
    sys.exit(main())
