"""Answers -> scores. Needs no model."""

import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.utils import get_object

from tasft.errors import UserError, first_line
from tasft.judge.protocol import Judge
from tasft.result.outcome import judge_settings
from tasft.result.rows import ResponseRow, ScoreRow, read_rows, write_atomically, write_rows
from tasft.result.store import RunDir
from tasft.schema import JUDGE_NOTES

log = logging.getLogger(__name__)

LABELS = "threshold"  # the key that decides labels alone, of a judge that has a `label`: tasft.judge.protocol.Judge


@dataclass(frozen=True)
class Asked:
    """Answers that a judge is to judge, and the file that its scores are kept in."""

    judge: str
    answers: Callable[[], Sequence[ResponseRow]]
    file: Path
    what: str = "answers"  # in messages


def deciding(node: Mapping[str, Any]) -> dict[str, Any]:
    """What decides scores and labels of the judge that a config node describes.

    Of a server's address only whether it is OpenAI's own: elsewhere the model's name says who answers.
    """
    decides = {key: value for key, value in judge_settings(node).items() if key not in JUDGE_NOTES}
    if "base_url" in node:
        decides["base_url"] = None if node["base_url"] is None else "one's own"
    return decides


def scoring(node: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the judge's scores, whatever their labels."""
    return deciding(node) if _label(node) is None else _without_threshold(node)


def names(node: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the judge's scores are kept under: by now, and before its threshold decided labels alone."""
    return [scoring(node)] + [deciding(node)] * (deciding(node) != scoring(node))


def relabels(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether nothing but a threshold tells the settings apart, and it labels the scores that are there anew.

    A judge that had no threshold may have labelled them by another rule.
    """
    return (
        before.get(LABELS, "none") != now.get(LABELS, "none")
        and _without_threshold(before) == _without_threshold(now)
        and _label(now) is not None
    )


def relabelled(node: Mapping[str, Any], rows: Sequence[ScoreRow]) -> list[ScoreRow]:
    """The scores with the labels that the judge gives them by now; KeyError where they do not tell."""
    label = _label(node)
    if label is None:
        return list(rows)
    return [row if row.score is None else replace(row, label=label(row.score, row.detail or {}, node)) for row in rows]


def _without_threshold(node: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in deciding(node).items() if key != LABELS}


def _label(node: Mapping[str, Any]) -> Callable[..., str | None] | None:
    """How the judge labels a score that is there, where it has a `threshold` and can."""
    if LABELS not in node:
        return None
    try:
        return getattr(get_object(node["_target_"]), "label", None)
    except Exception:  # a target that is no more
        return None


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> set[str]:
    """The judges of both whose settings would give other scores or labels now."""
    return {name for name in before.keys() & now.keys() if deciding(before[name]) != deciding(now[name])}


def heed(
    folder: RunDir, before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]], able: Collection[str]
) -> set[str]:
    """Bring a folder's scores in line with the judges' settings: config nodes `before`, and `now`.

    Scores of other settings are dropped, if the judge is among the `able`, who can judge again; those that another
    threshold alone tells apart are labelled anew, which needs nobody. The judges whose labels are new.
    """
    told, others = set(), changed(before, now)
    for benchmark, step, judge in folder.scores_present():
        if judge in before.keys() & now.keys() and relabels(before[judge], now[judge]):
            with suppress(KeyError):  # the scores hold too little
                rows = relabelled(now[judge], folder.read_scores(benchmark, step, judge))
                folder.write_scores(benchmark, step, judge, rows)
                log.info(
                    "judge.%s labels by another threshold or rule: its scores of %s are relabelled", judge, benchmark
                )
                told.add(judge)
                continue
        if judge in others & set(able):
            log.info("judge.%s has other settings than before: what it said of %s is dropped", judge, benchmark)
            folder.drop_scores(benchmark, step, judge)
    return told


def judge(judge: Judge, rows: Sequence[ResponseRow]) -> list[ScoreRow]:
    """One score for each answer; ValueError where the judge returns another number of them."""
    columns = {name: [getattr(row, name) for row in rows] for name in getattr(judge, "columns", ())}
    scores = judge([row.prompt for row in rows], [row.response for row in rows], **columns)
    return [
        ScoreRow(
            prompt_id=row.prompt_id,
            score=score.value,
            label=score.label,
            reason=score.reason,
            detail=score.detail,
            again=score.again if score.value is None else None,
        )
        for row, score in zip(rows, scores, strict=True)
    ]


def judge_rest(judged_by: Judge, rows: Sequence[ResponseRow], before: Sequence[ScoreRow] | None) -> list[ScoreRow]:
    """One score for each answer: that of `before`, and the judge's where there is none or an unscored one.

    A server may have had a bad day; what can never be read costs a judge nothing.
    """
    missing = [i for i in range(len(rows)) if before is None or before[i].score is None]
    scores = dict(zip(missing, judge(judged_by, [rows[i] for i in missing]), strict=True)) if missing else {}
    return [scores[i] if before is None or i in scores else before[i] for i in range(len(rows))]


def judge_into(judged_by: Judge, asked: Asked, written: Callable[[], object] = lambda: None) -> list[ScoreRow]:
    """One score for each answer: what the file holds, and the judge's where it holds none; then it holds them all.

    Beside it, in .json, which weights have judged, where they are the judge's own. `written`: called after that.
    """
    rows, file = asked.answers(), asked.file
    before = read_rows(file, ScoreRow) if file.is_file() else None
    scores = judge_rest(judged_by, rows, before)
    if scores != before:
        write_rows(file, scores)
        _note_weights(judged_by, file)
        written()
    unscored = [score for score in scores if score.score is None]
    if unscored:
        why = f"{unscored[0].reason})" + ": the same command asks again" * any(row.again for row in unscored)
        log.info("%d of %d %s are unscored by %s (%s", len(unscored), len(rows), asked.what, asked.judge, why)
    return scores


def judge_all(
    judges: Mapping[str, Judge], todo: Iterable[Asked], written: Callable[[], object] = lambda: None
) -> dict[str, str]:
    """Have all in `todo` judged, one judge after the other, so that the weights of one at a time are in memory.

    A judge that cannot go on stops no other: those, and why. `written`: as in `judge_into`.
    """
    todo, failed = list(todo), dict[str, str]()
    for name, judged_by in judges.items():
        with going_on(name, judged_by, failed):
            for asked in todo:
                if asked.judge == name:
                    judge_into(judged_by, asked, written)
    return failed


@contextmanager
def going_on(name: str, judged_by: Judge, failed: dict[str, str]) -> Iterator[None]:
    """Within, the judge judges; where it cannot go on, `failed` says why. After it, its weights are let go of."""
    try:
        yield
    except UserError as error:
        failed[name] = str(error)
    except Exception as error:
        if _out_of_memory(error):
            failed[name] = f"out of memory: give a smaller judge.{name}.batch_size, or another device or dtype"
        else:  # a mistake in the judge: whoever can mend it needs to see where
            log.error("judge.%s fails", name, exc_info=True)
            failed[name] = f"{type(error).__name__}: {first_line(error)}"
    let_go = getattr(judged_by, "let_go", None)
    if let_go is not None:
        let_go()


def _note_weights(judged_by: Judge, file: Path) -> None:
    """Write beside the scores which weights have judged them, each once, as a revision may be a moving name."""
    weights = getattr(judged_by, "weights", None)
    if weights is not None:
        note = file.with_suffix(".json")
        kept = json.loads(note.read_bytes())["weights"] if note.is_file() else []
        if weights not in kept:
            write_atomically(note, json.dumps({"weights": [*kept, weights]}) + "\n")


def _out_of_memory(error: Exception) -> bool:
    """Whether the GPU's memory, or the CPU's, was not enough; PyTorch has a class of its own for the first only."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error))
    )


def say_what_failed(failed: Mapping[str, str]) -> None:
    """UserError where judges could not go on, once all else is done."""
    if failed:
        listed = "; ".join(f"judge.{name}: {why}" for name, why in failed.items())
        raise UserError(f"{listed}. All else is done, and the same command has the rest judged")
