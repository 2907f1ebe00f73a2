"""The model's own harmful answers (paper 4.1): python -m tasft.harvest model=mistral7b."""

import hashlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from tasft.config import checked, entry
from tasft.errors import UserError
from tasft.progress import Progress, quiet
from tasft.result.batches import Batches
from tasft.result.rows import ResponseRow, ScoreRow, write_atomically
from tasft.schema import Harvest, RunConfig

if TYPE_CHECKING:  # these bring torch
    from tasft.benchmark.prompts import BenchmarkPrompt
    from tasft.judge.protocol import Judge
    from tasft.prepare import Run

log = logging.getLogger(__name__)

REASONS = 5  # in the table; harvest.json has them all


def harvest(cfg: DictConfig) -> None:
    """Fine-tune on the safe rows, answer the toxic prompts, keep the first `harvest.keep` harmful answers.

    Writes toxic.jsonl, harvest.json and perhaps scores.png to <harvest.root>/<model>/. The fine-tuning is an ordinary
    run: one that is finished is not run again. Answers and scores lie in its folder, batch by batch; the same command
    goes on where it stopped, and other judges, labels and counts use the answers that are there.
    """
    config = checked(cfg)
    _check(config)
    from tasft.execute import alone, answer, commit, execute, load_tuned
    from tasft.prepare import prepare
    from tasft.result.store import check_writable
    from tasft.track import track_stage
    from tasft.training_data import harvest_file

    file, started = harvest_file(config), _now()
    check_writable(file.parent)
    run = prepare(cfg)
    judge = run.parts.needed(config.harvest.judge)
    prompts, left_out = _toxic_prompts(run)
    with alone(file.parent):
        folder = execute(run)
        log.info("the harvest holds harmful text: it is there to push models away from it, and is not to be passed on")
        with alone(folder.path):
            model = cache(partial(load_tuned, run))  # loaded for the first answer that is not there
            answers = Batches(folder.harvest / "answers.jsonl", ResponseRow)
            scores = Batches(folder.harvest / f"scores.{config.harvest.judge}.jsonl", ScoreRow)
            judged = collect(
                prompts, config.evaluate.batch_size, config.harvest, config.seed,
                partial(
                    asked, answers, config.evaluate.max_new_tokens, lambda batch: answer(run, model(), batch, "prompts")
                ),
                partial(scored, scores, config.judge[config.harvest.judge], judge),
            )  # fmt: skip
        report = _report(run, prompts, left_out, judged)
        _print(report)
        rows = _rows(run, judged)
        _advise(config, report)
        _write(file, rows, report, {"started": started, "finished": _now(), "commit": commit()}, judged)
        told = {key: report[key] for key in ("judge", "label", "keep", "label_noise")} | report["counts"]
        del told["unscored_reasons"]  # they may quote answers
        track_stage(config, folder, "harvest", {f"harvest/{key}": value for key, value in told.items()})


@dataclass(frozen=True)
class Judged:
    """An answer, the judge's verdict on it, and what is made of both."""

    answer: ResponseRow
    score: ScoreRow
    flipped: bool  # by harvest.label_noise
    harmful: bool  # whether it may be kept: the judge gives it the wanted label, or it does not and is flipped


def collect(
    prompts: "Sequence[BenchmarkPrompt]",
    batch_size: int,
    wanted: Harvest,
    seed: int,
    ask: "Callable[[Sequence[BenchmarkPrompt]], list[ResponseRow]]",
    score: Callable[[list[ResponseRow]], list[ScoreRow]],
) -> list[Judged]:
    """Ask and judge batch after batch until `wanted.keep` answers are harmful; all that was judged, in order."""
    judged: list[Judged] = []
    harmful = 0
    with Progress(len(prompts), "harvesting", "prompt") as bar:
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            with quiet():  # model and judge report on each batch
                answers = ask(batch)
                verdicts = score(answers)
            for answer, verdict in zip(answers, verdicts, strict=True):
                scored = verdict.score is not None
                flipped = scored and coin(seed, answer.prompt_id) < wanted.label_noise
                judged.append(Judged(answer, verdict, flipped, scored and (verdict.label == wanted.label) != flipped))
            harmful = sum(each.harmful for each in judged)
            bar.advance(len(batch), f"{harmful} to keep")
            if harmful >= wanted.keep:
                break
    return judged


def asked(
    known: Batches[ResponseRow],
    max_new_tokens: int,
    answer: "Callable[[Sequence[BenchmarkPrompt]], list[ResponseRow]]",
    prompts: "Sequence[BenchmarkPrompt]",
) -> list[ResponseRow]:
    """The answers to a batch of prompts: those in `known`, else what `answer` says, which goes there."""
    deciding = [max_new_tokens, [prompt.text for prompt in prompts]]
    rows = known.get(*deciding)
    if rows is None:
        rows = answer(prompts)
        known.add(rows, *deciding)
    return rows


def scored(
    known: Batches[ScoreRow], node: Mapping[str, Any], judge: "Judge", answers: list[ResponseRow]
) -> list[ScoreRow]:
    """The scores of a batch of answers: those in `known`, else what the judge says, which goes there.

    Unscored ones are judged again: a server may have had a bad day. `node` is the judge's config; another threshold
    labels the scores in `known` anew.
    """
    from tasft.evaluate import judging

    now, *earlier = judging.names(node)
    about = [[answer.prompt, answer.response] for answer in answers]
    kept_as = next((each for each in earlier if known.get(each, about) is not None), now)
    before = known.get(kept_as, about)
    rows = judging.judge_rest(judge, answers, before)
    if rows != before:
        known.add(rows, kept_as, about)
    return judging.relabelled(node, rows) if kept_as == now else rows


def coin(seed: int, prompt_id: str) -> float:
    """A number in [0, 1), the same for a seed and a prompt whatever else is asked, and in whatever order."""
    digest = hashlib.sha256(f"label noise {seed} {prompt_id}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _check(config: RunConfig) -> None:
    """What can be said before anything slow is imported."""
    if config.loss.name != "sft":
        raise UserError(
            f"the harvest comes from plain SFT, not from loss={config.loss.name}: leave loss out, or give loss=sft"
        )
    if config.harvest.judge not in config.judge:
        raise UserError(
            f"harvest.judge={config.harvest.judge} is not among judge=[{','.join(config.judge)}]: add it there"
        )


def _toxic_prompts(run: "Run") -> "tuple[list[BenchmarkPrompt], int]":
    """The prompts of data.toxic_prompts, each once, in the order of the source; and how many benchmarks ask, too."""
    from tasft.benchmark.prompts import number
    from tasft.contamination import contaminated
    from tasft.data.example import Rejected, prompt_of
    from tasft.data.mixture import summary
    from tasft.parts import with_rows
    from tasft.source import read_rows

    data = run.config.data
    source = with_rows(data.toxic_prompts, "data.toxic_prompts")
    read = {row.place: prompt_of(row, source.fields) for row in read_rows(source, "data.toxic_prompts")}
    rejected = [each for each in read.values() if isinstance(each, Rejected)]
    if rejected:
        log.info("passed over toxic prompts: %s", summary(rejected))
    places: dict[str, str] = {}
    for place, text in read.items():
        if isinstance(text, str) and text.strip():
            places.setdefault(text, place)
    left_out = contaminated(places, run.parts.prompts, data.contamination)
    texts = [text for text in places if text not in left_out]
    if not texts:
        raise UserError("data.toxic_prompts holds no usable prompt: give a source of toxic prompts")
    if source.count is not None and len(texts) < source.count:
        log.info("data.toxic_prompts.count=%d, but there are only %d: all are asked", source.count, len(texts))
    return number(texts[: source.count]), len(left_out)


def _rows(run: "Run", judged: list[Judged]) -> list[dict[str, object]]:
    """The harmful answers to keep, with what they come from; UserError where there is none."""
    from tasft.training_data import model_identity

    config, wanted = run.config, run.config.harvest
    kept = [each for each in judged if each.harmful][: wanted.keep]
    if not kept:
        labels = {each.score.label or f"unscored ({each.score.reason})" for each in judged}
        raise UserError(
            f"no answer is {wanted.label} by judge {wanted.judge}, which says {', '.join(sorted(labels)[:REASONS])}:"
            " give another harvest.label or harvest.judge, or more prompts"
        )
    return [
        {
            "prompt": each.answer.prompt,
            "response": each.answer.response,
            "judge": wanted.judge,
            "score": each.score.score,
            "model": model_identity(config, run.base),
            "adapter": str(run.folder.adapter),
            "seed": config.seed,
        }
        for each in kept
    ]


def _report(run: "Run", prompts: "Sequence[BenchmarkPrompt]", left_out: int, judged: list[Judged]) -> dict[str, Any]:
    """What was asked, of whom, and what came of it: the same after any number of kills."""
    from tasft.training_data import model_identity

    config, wanted = run.config, run.config.harvest
    scores = [each.score for each in judged]
    kept = [each for each in judged if each.harmful][: wanted.keep]
    return {
        "model": model_identity(config, run.base),
        "adapter": str(run.folder.adapter),
        "seed": config.seed,
        "judge": wanted.judge,
        "judge_config": config.judge[wanted.judge],
        "label": wanted.label,
        "keep": wanted.keep,
        "label_noise": wanted.label_noise,
        "max_new_tokens": config.evaluate.max_new_tokens,
        "batch_size": config.evaluate.batch_size,
        "counts": {
            "prompts": len(prompts),
            "prompts_of_benchmarks_left_out": left_out,
            "answered": len(judged),
            "judged": sum(score.score is not None for score in scores),
            "labels": _counted(score.label or "no label" for score in scores if score.score is not None),
            "unscored": sum(score.score is None for score in scores),
            "unscored_reasons": _counted(str(score.reason) for score in scores if score.score is None),
            "flipped_to_harmless": sum(each.flipped and not each.harmful for each in judged),
            "flipped_to_harmful": sum(each.flipped and each.harmful for each in judged),
            "kept": len(kept),
            "kept_flipped": sum(each.flipped for each in kept),
        },
    }


def _counted(words: Any) -> dict[str, int]:
    return dict(sorted(Counter(words).items(), key=lambda item: (-item[1], item[0])))


def _advise(config: RunConfig, report: Mapping[str, Any]) -> None:
    """What the numbers do not say by themselves."""
    wanted, counts = config.harvest, report["counts"]
    if wanted.label_noise:
        log.info(
            "harvest.label_noise=%g: %d answers that are %s are left out, %d others let in; %d of the %d kept are such",
            wanted.label_noise, counts["flipped_to_harmless"], wanted.label, counts["flipped_to_harmful"],
            counts["kept_flipped"], counts["kept"],
        )  # fmt: skip
    if counts["unscored"]:
        log.info("unscored answers are not kept; the same command has them judged again")
    if counts["kept"] < wanted.keep:
        log.warning(
            "harvest.keep=%d, but of %d answers only %d are %s: all are kept; for more, give more prompts"
            " (data.toxic_prompts.count, or another source)",
            wanted.keep, counts["answered"], counts["kept"], wanted.label,
        )  # fmt: skip
    if wanted.judge == "refusal":
        log.info("judge refusal reads opening words: what is kept is no refusal, and nothing has judged its harm")


def _print(report: Mapping[str, Any]) -> None:
    """The counts as a table."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    counts = report["counts"]
    title = f"harvest of {report['model']}, judge {report['judge']}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("")
    table.add_column("answers", justify="right")
    table.add_row(f"asked, of {counts['prompts']} prompts", str(counts["answered"]))
    table.add_row("judged", str(counts["judged"]))
    for label, count in counts["labels"].items():
        table.add_row(f"  {label}", str(count), style="bold" if label == report["label"] else None)
    table.add_row("unscored", str(counts["unscored"]))
    for reason, count in list(counts["unscored_reasons"].items())[:REASONS]:
        table.add_row(f"  {reason}", str(count))
    table.add_row("kept", str(counts["kept"]), style="bold")
    Console().print(table)


def _write(
    file: Path, rows: list[dict[str, object]], report: dict[str, Any], call: dict[str, Any], judged: list[Judged]
) -> None:
    """toxic.jsonl, written last, and what stands beside it; nothing where all of it is there."""
    text, beside = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), file.with_name("harvest.json")
    if file.is_file() and file.read_bytes() == text.encode() and _reported(beside) == report:
        log.info("already harvested: %s", file)
        return
    if file.is_file():
        log.info("another harvest was there (seed, judge, label, count or noise differ): it is replaced")
    write_atomically(beside, json.dumps(report | {"written": call}, indent=1, ensure_ascii=False) + "\n")
    figure = file.with_name("scores.png")
    figure.unlink(missing_ok=True)
    if {each.score.score for each in judged} - {None, 0, 1}:
        _draw(judged, report, figure)
    write_atomically(file, text)
    log.info("harvest: %s", file)


def _reported(file: Path) -> dict[str, Any] | None:
    """What harvest.json says, without when it was written; None where it says nothing."""
    try:
        said = json.loads(file.read_bytes())
        del said["written"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return said


def _draw(judged: list[Judged], report: Mapping[str, Any], path: Path) -> None:
    """A histogram of the judge's scores, by label."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    by_label: dict[str, list[float]] = {label: [] for label in report["counts"]["labels"]}
    for each in judged:
        if each.score.score is not None:
            by_label[each.score.label or "no label"].append(each.score.score)
    # Okabe and Ito's colours, which colour-blind readers tell apart (https://jfly.uni-koeln.de/color/)
    others = iter(["#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"] * len(by_label))
    colours = ["#D55E00" if label == report["label"] else next(others) for label in by_label]
    figure = Figure(figsize=(5.0, 3.2), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.hist(list(by_label.values()), bins=30, stacked=True, color=colours, label=list(by_label))
    axes.set_xlabel(f"score of judge {report['judge']}")
    axes.set_ylabel("answers")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def main() -> int:
    """Run the command line; the exit code."""
    return entry(harvest, "harvest")


if __name__ == "__main__":
    sys.exit(main())
