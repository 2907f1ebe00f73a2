"""What the page is made from, as plain values for JSON: runs, settings, curves, and a sample of the answers."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from tasft.errors import UserError
from tasft.progress import Progress
from tasft.report.command import command
from tasft.report.further import attacks, begun, labels, scores
from tasft.report.summary import Column, Setting, Summary, name_of, setting_of
from tasft.result.outcome import JOINT
from tasft.result.rows import ResponseRow, ScoreRow
from tasft.result.statistics import estimate
from tasft.result.store import RunDir, read_config, toxic_used
from tasft.result.table import MEAN, TASK, Measurement, Table
from tasft.schema import KINDS

# What bounds the page: of 500 runs it has less than 10 MB, and opens in a second or two
POINTS, ALL_POINTS = 200, 400_000  # of one curve, and of all curves of the page
RATES = 40_000  # of all rates during the trainings
SAMPLE, TEXT = 20, 4_000_000  # prompts of one benchmark, and bytes of all answers of the page
LONGEST = (4000, 1000, 250)  # characters of one answer, and of one where the longer would leave no prompt
VERDICTS = 24  # bytes of what stands beside an answer's text
TERMS = {"loss": "loss", "safe_loss": "safe loss", "toxic_loss": "toxic loss", "weight": "λ"}  # of metrics.jsonl

Cell = list[Any] | None  # value, low, high, spread over seeds, n, unscored; None: not measured


@dataclass
class _Kept:
    """Values that many runs share, each of them once; what stands for one is its place."""

    values: list[Any] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)

    def place(self, value: Any) -> int:
        key = value if isinstance(value, str) else json.dumps(value)
        if key not in self.places:
            self.places[key] = len(self.values)
            self.values.append(value)
        return self.places[key]


@dataclass(frozen=True)
class _Run:
    """A run as the page needs it: what the tables call it, and its folder."""

    name: str
    folder: RunDir
    config: Mapping[str, Any]
    model: str
    setting: Setting
    share: float | None
    seed: int | None
    state: str  # finished | unfinished | not judged


def page_data(root: Path, table: Table, summaries: Sequence[Summary], notes: Sequence[str]) -> dict[str, Any]:
    """Everything that the page shows. Damaged files of finished runs are a UserError, as in the tables."""
    runs = _runs(root, table, summaries)
    shared, steps = _Kept(), _Kept()
    models = list(dict.fromkeys([*(each.model for each in summaries), *(run.model for run in runs)]))
    by_model = {each.model: each for each in summaries}
    points = max(20, min(POINTS, ALL_POINTS // (len(runs) * len(TERMS)))) if runs else POINTS
    described = []
    at_steps = _at_steps(table)
    cells = {model: _cells(by_model[model]) for model in models if model in by_model}
    evals = {run.name: _evals(by_model.get(run.model), at_steps.get(run.name, {})) for run in runs}
    curves = sum(map(len, evals.values()))
    rates = max(3, min(POINTS, RATES // curves)) if curves else POINTS
    with Progress(len(runs), "index.html", "run") as progress:
        for run in runs:
            of_model = cells.get(run.model, {})
            described.append(
                {
                    "path": run.name,
                    "model": models.index(run.model),
                    **_named(run),
                    "cells": of_model.get(run.name, []),
                    "curves": _curves(run, points, steps),
                    "evals": {column: thinned(each, rates) for column, each in evals[run.name].items()},
                    **_made(run, shared),
                }
            )
            progress.advance()
    answers, sampled, longest = _answers(table, runs)
    return {
        "title": root.resolve().name,
        "models": [_model(model, by_model.get(model), runs, cells.get(model, {})) for model in models],
        "runs": described,
        "steps": steps.values,
        "shared": shared.values,
        "terms": TERMS,
        "answers": answers,
        "notes": [*notes, *_said(points, rates, sampled, longest)],
    }


def _runs(root: Path, table: Table, summaries: Sequence[Summary]) -> list[_Run]:
    """Every run under `root`, in the order of the tables; those without scores last."""
    runs = []
    for summary in summaries:
        first: dict[str, Measurement] = {}
        for row in summary.rows:
            first.setdefault(row.run, row)
        order = {line.setting: place for place, line in enumerate(summary.lines)}
        for row in sorted(first.values(), key=lambda row: (order[setting_of(row)], row.seed, row.run)):
            folder = RunDir(root / row.run)
            config = table.configs[row.run]
            runs.append(_Run(row.run, folder, config, row.model, setting_of(row), row.share, row.seed, "finished"))
    for state, names in (("not judged", table.unjudged), ("unfinished", table.unfinished)):
        for name in names:
            folder = RunDir(root / name)
            try:
                runs.append(_unscored_run(name, folder, read_config(folder.config), state))
            except (UserError, KeyError, TypeError, ValueError):
                continue  # a folder that is being made, or that no run has made; the tables name it
    return runs


def _unscored_run(name: str, folder: RunDir, config: Mapping[str, Any], state: str) -> _Run:
    loss, toxic = config["loss"]["name"], int(config["data"]["toxic"])
    weight = config["loss"].get("weight")
    variant = "weight=auto" if weight == "auto" else ""
    setting = Setting(loss, toxic_used(loss, toxic), None if loss == "sft" or variant else weight, variant)
    return _Run(
        name, folder, config, config["model"]["name"], setting, config["loss"].get("share"), config.get("seed"), state
    )


def _named(run: _Run) -> dict[str, Any]:
    setting = run.setting
    return asdict(setting) | {
        "label": name_of(replace(setting, variant="")),
        "share": run.share,
        "seed": run.seed,
        "state": run.state,
    }


def columns_of(summary: Summary) -> list[Column]:
    """All columns of a model: joint outcomes, each judge alone, labels, mean scores and tasks, attacks, prefilling."""
    found = [*summary.columns, *summary.by_judge, *summary.labels, *summary.scores, *summary.robust]
    return list({(each.judge, each.metric, each.benchmark): each for each in found}.values())


def better(column: Column) -> str | None:
    """Whether "low" or "high" is what one wants of a column; None where that depends on who asks."""
    if column.metric in ("harmful", "incoherent", "wrong"):
        return "low"
    if column.metric in ("refusal", "partial refusal"):
        return "low" if column.kind != "toxic" else "high" if column.metric == "refusal" else None
    if column.metric == "helpful" or (column.kind == TASK and column.metric.startswith("acc")):
        return "high"
    return None


def _model(name: str, summary: Summary | None, runs: Sequence[_Run], cells: Mapping[str, list[Cell]]) -> dict[str, Any]:
    """A model's columns, settings and notes; settings hold the places of their runs."""
    columns = columns_of(summary) if summary else []
    parts = [
        (summary.columns, "outcomes"), (summary.by_judge, "each judge alone"), (summary.labels, "labels"),
        (summary.robust, "attacks and prefilling"),
    ] if summary else []  # fmt: skip
    of_part = {(c.judge, c.metric, c.benchmark): part for listed, part in reversed(parts) for c in listed}
    together: dict[tuple[Setting, str], list[int]] = defaultdict(list)
    for place, run in enumerate(runs):
        if run.model == name:
            together[run.setting, run.state].append(place)
    index = _index(summary) if summary else {}
    settings = []
    for (_, state), places in together.items():
        of_runs = [index.get(runs[place].name, {}) for place in places]
        judged = [_setting_cell([of[key] for of in of_runs if key in of]) for key in map(_key, columns)]
        seeds = {"runs": places, "seeds": [runs[place].seed for place in places]}
        settings.append(_named(runs[places[0]]) | {"state": state, "seed": None} | seeds | {"cells": judged})
    notes = list(summary.notes) if summary else []
    if summary:
        sections = (*labels(summary), *scores(summary), *attacks(summary), *begun(summary))
        notes += dict.fromkeys(note for each in sections for note in each.notes)
    return {
        "name": name,
        "columns": [
            {
                **asdict(column),
                "part": of_part.get(_key(column), "scores and tasks"),
                "percent": column.metric != MEAN and column.kind != TASK,
                "better": better(column),
            }
            for column in columns
        ],
        "settings": settings,
        "notes": notes,
        "harm": bool(summary and summary.harm_judged),
    }


def _key(column: Column | Measurement) -> tuple[str, str, str]:
    return column.judge, column.metric, column.benchmark


def _index(summary: Summary) -> dict[str, dict[tuple[str, str, str], Measurement]]:
    """Run -> what stands in each column."""
    index: dict[str, dict[tuple[str, str, str], Measurement]] = defaultdict(dict)
    for row in summary.rows:
        index[row.run][_key(row)] = row
    return index


def _cells(summary: Summary) -> dict[str, list[Cell]]:
    """Run -> a cell for each column."""
    columns = [_key(column) for column in columns_of(summary)]
    return {run: [_cell(of.get(key)) for key in columns] for run, of in _index(summary).items()}


def _cell(row: Measurement | None) -> Cell:
    return None if row is None else [*map(_short, (row.value, row.low, row.high)), None, row.n, row.unscored]


def _setting_cell(rows: Sequence[Measurement]) -> Cell:
    """Seeds together as in the tables; n of one run."""
    made = estimate(rows)
    if made is None:
        return _cell(next(iter(rows), None))
    n = made.n if made.n == made.most else f"{made.n}-{made.most}"
    return [*map(_short, (made.value, made.low, made.high, made.spread)), n, made.unscored]


def _short(value: float | None, digits: int = 6) -> float | None:
    """A rate so that it is rounded to what the tables say; a point of a curve needs fewer digits."""
    return None if value is None else float(f"{value:.{digits}g}")


def _curves(run: _Run, points: int, steps: _Kept) -> dict[str, list[Any]]:
    """Term -> the place of its steps, and its values; every k-th step, so that at most `points` stay, and the last."""
    try:
        lines = run.folder.read_metrics()
    except UserError:
        if run.state == "finished":
            raise
        return {}  # its last line is being written
    curves = {}
    for term in TERMS:
        # a step without toxic rows has a toxic loss of 0, which says nothing; plain SFT has neither term
        kept = [
            (line["step"], line[term])
            for line in lines
            if line.get(term) is not None and (term != "toxic_loss" or line.get("toxic_examples", 1))
        ]
        if not kept or (term == "weight" and run.setting.loss == "sft"):
            continue
        kept = thinned(kept, points)
        values = [_short(value, 4) for _, value in kept]
        if len(set(values)) == 1 and len(values) > 2:  # λ, most often: a line between its ends
            kept, values = [kept[0], kept[-1]], values[:2]
        curves[term] = [steps.place([step for step, _ in kept]), values]
    return curves


def thinned(points: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the points at even distances, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    last = len(points) - 1
    return [points[round(i * last / (most - 1))] for i in range(most)]


def _at_steps(table: Table) -> dict[str, dict[tuple[str, str, str], list[Measurement]]]:
    """Run -> column -> its measurements at all steps."""
    found: dict[str, dict[tuple[str, str, str], list[Measurement]]] = defaultdict(lambda: defaultdict(list))
    for row in table.rows:
        if row.judge == JOINT:
            found[row.run][_key(row)].append(row)
    return found


def _evals(
    summary: Summary | None, of_run: Mapping[tuple[str, str, str], list[Measurement]]
) -> dict[int, list[list[Any]]]:
    """Place of a column -> step, value, low, high and n of each evaluation, where there are several."""
    if summary is None:
        return {}
    evals = {}
    for place, column in enumerate(columns_of(summary)):
        rows = sorted(of_run.get(_key(column), []), key=lambda row: row.step)
        if len(rows) > 1:
            evals[place] = [[row.step, *map(_short, (row.value, row.low, row.high)), row.n] for row in rows]
    return evals


def _made(run: _Run, shared: _Kept) -> dict[str, Any]:
    """Command, environment and cost; what runs share stands in `shared`."""
    said: dict[str, Any] = {}
    try:
        made = command(run.config)
        said["command"] = made.text
        if made.unknown:
            said["unknown"] = list(made.unknown)
    except (HydraException, OmegaConfBaseException, UserError) as error:
        said["no_command"] = str(error).splitlines()[0]
    environment = _object(run.folder.environment)
    for key in ("started", "commit"):
        said[key] = environment.get(key)
    said["why"] = _mapping(environment.get("weight")).get("why") if run.setting.loss != "sft" else None
    parts, licences = _mapping(environment.get("data")), _mapping(environment.get("licences"))
    data = {kind: [_mapping(of).get("rows"), licences.get(kind)] for kind, of in parts.items()}
    keys = ("python", "versions", "device", "world_size")
    said["environment"] = shared.place({key: environment[key] for key in keys if key in environment} | {"data": data})
    cost = run.folder.read_cost()
    if cost:
        said["cost"] = cost
    return {key: value for key, value in said.items() if value is not None}


def _object(path: Path) -> dict[str, Any]:
    """A file's JSON object; an empty one where there is none to read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return _mapping(values)


def _mapping(value: Any) -> dict[str, Any]:
    """A dictionary as it is, an empty one for anything else: earlier versions wrote other things."""
    return value if isinstance(value, dict) else {}


def sample_of(rows: Sequence[ResponseRow], most: int) -> list[ResponseRow]:
    """The first `most` answers by the SHA-256 of their prompts' ids: of every run the same prompts."""
    return sorted(rows, key=lambda row: hashlib.sha256(row.prompt_id.encode()).digest())[:most]


def _answers(table: Table, runs: Sequence[_Run]) -> tuple[dict[str, Any], int, int]:
    """The sample at the last step: benchmark -> prompts, and for each run an answer or null; its size; the longest.

    An answer is [text, [verdict of each judge], whether one says that it is harmful, whether it met its limit, how many
    characters are missing here]; a text or a verdict stands there once, and elsewhere by its place.
    """
    taken: dict[str, dict[int, list[ResponseRow]]] = defaultdict(dict)  # benchmark -> run -> its sample
    asked: dict[str, dict[int, int]] = defaultdict(dict)  # how many prompts it was taken from
    at: dict[tuple[str, int], int] = {}
    for place, run in enumerate(runs):
        last = dict(sorted(run.folder.responses_present()))  # the largest step of each benchmark
        for benchmark, step in last.items():
            try:
                rows = run.folder.read_responses(benchmark, step)
            except UserError:
                if run.state == "finished":
                    raise
                continue
            taken[benchmark][place], asked[benchmark][place] = sample_of(rows, SAMPLE), len(rows)
            at[benchmark, place] = step
    size, longest = _fitting([rows for of_runs in taken.values() for rows in of_runs.values()])
    texts, words = _Kept(), _Kept()
    benchmarks = {}
    kinds = {benchmark: _kind(benchmark, runs, of_runs) for benchmark, of_runs in taken.items()}
    for benchmark, of_runs in sorted(taken.items(), key=lambda each: (KINDS.index(kinds[each[0]]), each[0])):
        prompts: dict[str, str] = {}
        for rows in of_runs.values():
            for row in rows[:size]:
                prompts.setdefault(row.prompt_id, row.prompt)
        answers: dict[int, list[Any]] = {}
        judges: dict[int, list[str]] = {}
        for place, rows in of_runs.items():
            verdicts, harmful = _verdicts(table, runs[place], benchmark, at[benchmark, place])
            judges[place] = list(verdicts)
            given = {row.prompt_id: row for row in rows[:size]}
            answers[place] = [
                _answer(given[prompt], verdicts, harmful, longest, texts, words) if prompt in given else None
                for prompt in prompts
            ]
        benchmarks[benchmark] = {
            "kind": kinds[benchmark],
            "prompts": [prompt[:longest] for prompt in prompts.values()],
            "of": sorted(set(asked[benchmark].values())),
            "judges": {place: words.place(names) for place, names in judges.items()},
            "runs": answers,
        }
    return {"texts": texts.values, "words": words.values, "benchmarks": benchmarks}, size, longest


def _fitting(samples: Sequence[Sequence[ResponseRow]]) -> tuple[int, int]:
    """How many prompts of each benchmark, and characters of each answer, fit on the page; at least one, cut short."""
    for longest in LONGEST:
        size = _prompts(samples, longest)
        if size:
            return size, longest
    return 1, LONGEST[-1]


def _prompts(samples: Sequence[Sequence[ResponseRow]], longest: int) -> int:
    size = 0
    seen: set[str] = set()
    total = 0
    for place in range(SAMPLE):
        for rows in samples:
            text = rows[place].response[:longest] if place < len(rows) else ""
            total += VERDICTS * (place < len(rows))
            if text not in seen:
                seen.add(text)
                total += len(json.dumps(text, ensure_ascii=False).replace("<", "\\u003c").encode())
        if total > TEXT:
            break
        size = place + 1
    return size


def _verdicts(table: Table, run: _Run, benchmark: str, step: int) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """Joint or judge -> prompt -> what is said of the answer: a label, a number, or why it is unscored; and the
    prompts whose answers any judge calls harmful."""
    said: dict[str, dict[str, Any]] = {}
    outcomes = table.joints.get(run.name, {}).get((benchmark, step))
    if outcomes is not None:
        said[JOINT] = {row.prompt_id: row.value or f"unscored: {row.reason}" for row in outcomes.rows}
    harmful = set()
    for (name, at, judge), rows in table.scores.get(run.name, {}).items():
        if (name, at) == (benchmark, step):
            said[judge] = {row.prompt_id: _verdict(row) for row in rows}
            stands_for = _mapping(_mapping(_mapping(run.config.get("judge")).get(judge)).get("outcomes"))
            harmful |= {row.prompt_id for row in rows if row.label and stands_for.get(row.label) == "harmful"}
    return said, harmful


def _verdict(row: ScoreRow) -> Any:
    if row.score is None:
        return f"unscored: {row.reason}"
    if row.label is None:
        return _short(row.score)
    return row.label if row.score in (0, 1) else f"{row.label} {row.score:.3g}"


def _answer(
    row: ResponseRow, verdicts: Mapping[str, Mapping[str, Any]], harmful: Collection[str], longest: int,
    texts: _Kept, words: _Kept,
) -> list[Any]:  # fmt: skip
    missing = max(0, len(row.response) - longest)
    said = [words.place(of.get(row.prompt_id)) for of in verdicts.values()]
    return [texts.place(row.response[:longest]), said, int(row.prompt_id in harmful), int(bool(row.truncated)), missing]


def _kind(benchmark: str, runs: Sequence[_Run], of_runs: Iterable[int]) -> str:
    for place in of_runs:
        kind = _mapping(_mapping(runs[place].config.get("benchmark")).get(benchmark)).get("kind")
        if kind in KINDS:
            return str(kind)
    return "toxic"  # nobody knows: folded away


def _said(points: int, rates: int, sampled: int, longest: int) -> list[str]:
    return [
        f"Curves over steps: every k-th logged step, at most {points} points a curve, the first and the last among"
        f" them; of rates, at most {rates:,}. The toxic loss has no point where a step had no toxic rows.",
        f"Answers: a sample of up to {sampled} prompts of each benchmark at each run's last step, those whose ids come"
        " first by their SHA-256, so the same for every run; texts are cut after"
        f" {longest:,} characters. All answers lie in the runs' folders.",
        "What toxic benchmarks ask, what is answered to it, and every answer that a judge calls harmful is folded away"
        " until asked for.",
        "A run's command is made from its config: what that has in other words than today's defaults is given. It is"
        " run in the folder that relative paths start from; logging and servers are left out.",
    ]
