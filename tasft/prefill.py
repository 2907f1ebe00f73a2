"""Answers that begin with a harmful one's first tokens: python -m tasft.prefill experiment=demo loss=emd data.toxic=50.

A model that was tuned on whole answers may refuse with its first words alone; given those of a harmful answer, it may
go on with it (Qi et al. 2024, https://arxiv.org/abs/2406.05946).
"""

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from hashlib import sha256
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from tasft.config import checked, entry, judges_of
from tasft.errors import UserError
from tasft.result.prefill import continued, folder_of, points, prefilled
from tasft.result.rows import ResponseRow, write_atomically
from tasft.result.statistics import Rate, pooled
from tasft.result.store import RunDir, read_config
from tasft.schema import RunConfig

if TYPE_CHECKING:  # these bring torch
    from tasft.benchmark.prompts import BenchmarkPrompt
    from tasft.prepare import Run

log = logging.getLogger(__name__)

WIDTH = 140  # columns, where the output is no terminal
BENCHMARK = "benchmark"  # the source whose answers stand in the benchmark itself


@dataclass(frozen=True)
class Begun:
    """A prompt, and the tokens of the harmful answer to it."""

    prompt: "BenchmarkPrompt"
    tokens: list[int]


def prefill(cfg: DictConfig) -> None:
    """Have a finished run answer toxic prompts with the first n tokens of a harmful answer given; judge, print.

    The run's judges see the whole answer, its given beginning and what the model adds. A long beginning is harmful by
    itself, so the judges of harm see what the model adds alone, too. Writes to the run's folder, under
    prefill/<source>/, where no other table looks; what is there is not made again.
    """
    config = checked(cfg)
    names, tokens = _check(config), sorted(set(config.prefill.tokens))
    from tasft.execute import alone, answer, load_tuned
    from tasft.prepare import prepare

    run = prepare(cfg)
    if not run.folder.finished:
        raise UserError(f"{run.folder.path} is no finished run: give the same keys to python -m tasft.run first")
    _check(run.config)  # without the judges that cannot be had
    source = config.prefill.source
    begun = _from_benchmarks(run, names) if source is None else _from_run(run, RunDir(Path(source)), names)
    folder = folder_of(run.folder, BENCHMARK if source is None else Path(source).resolve().name)
    model = cache(partial(load_tuned, run))  # loaded for the first answer that is not there
    with alone(folder.path):
        _note_judges(run.config, folder)
        for name, each in begun.items():
            prompts, answers = [one.prompt for one in each], _digest(each)
            for n in tokens:
                settings = {"answers": answers, "tokens": n, "max_new_tokens": config.evaluate.max_new_tokens}
                settings["num_beams"] = config.evaluate.num_beams
                if not _there(folder, prefilled(name, n), run.step, settings):
                    given = [one.tokens[:n] for one in each]
                    folder.drop_scores(prefilled(name, n), run.step)
                    folder.drop_scores(continued(name, n), run.step)
                    rows = answer(run, model(), prompts, f"{name} after {n} tokens", prefix=given)
                    started = [_started(run, row, first) for row, first in zip(rows, given, strict=True)]
                    folder.write_responses(prefilled(name, n), run.step, started, settings)
                _judge(run, folder, name, n)
    _print(run, folder, list(begun), tokens)
    _track(run, folder)
    log.info("answers and scores: %s", folder.path)


def _there(folder: RunDir, name: str, step: int, settings: dict[str, Any]) -> bool:
    """Whether the answers are there, and were decided by these very settings; others are deleted."""
    answers = folder.path / "responses" / f"{name}@{step}.jsonl"
    beside = answers.with_suffix(".json")
    if answers.is_file() and beside.is_file() and json.loads(beside.read_bytes()) == settings:
        return True
    answers.unlink(missing_ok=True)
    return False


def _check(config: RunConfig) -> list[str]:
    """The toxic benchmarks; UserError where there is nothing to ask, or nobody to judge harm."""
    if not config.prefill.tokens:
        raise UserError("prefill.tokens is empty: give some, such as [0,1,2,4,8,16]")
    toxic = [name for name, each in config.benchmark.items() if each.kind == "toxic"]
    if not toxic:
        raise UserError(f"benchmark=[{','.join(config.benchmark)}] has none of the kind toxic: add one")
    for name in toxic:
        if not _judges_of_harm(config, name):
            raise UserError(
                f"no judge of judge=[{','.join(config.judge)}] says of {name} what is harmful: add one, such as"
                " judge=[refusal,qwen3guard]"
            )
    if config.prefill.source is not None and not RunDir(Path(config.prefill.source)).finished:
        raise UserError(f"prefill.source={config.prefill.source} is no folder of a finished run")
    return toxic


def _judges_of_harm(config: RunConfig, benchmark: str) -> list[str]:
    """The benchmark's judges that have a label for what is harmful."""
    return [name for name in judges_of(config, benchmark) if _harmful_labels(config.judge[name])]


def _harmful_labels(node: Any) -> list[str]:
    return [label for label, outcome in (node.get("outcomes") or {}).items() if outcome == "harmful"]


def _from_benchmarks(run: "Run", names: Sequence[str]) -> dict[str, list[Begun]]:
    """The harmful answers that the benchmarks bring, and their prompts; UserError where none brings any."""
    found = {}
    for name in names:
        prompts = run.parts.prompts[name]
        begun = [_begun(run, prompt, prompt.harmful) for prompt in prompts if (prompt.harmful or "").strip()]
        if not begun:
            log.info("%s brings no harmful answers: it is left out", name)
            continue
        found[name] = begun
    if not found:
        raise UserError(
            f"none of {', '.join(names)} brings harmful answers to begin with: name their column in the benchmark's"
            " fields.harmful, or take those of a run, say plain SFT: prefill.source=<its folder>"
        )
    return found


def _from_run(run: "Run", other: RunDir, names: Sequence[str]) -> dict[str, list[Begun]]:
    """Another run's last answers to the same prompts that its judge of harm calls harmful; UserError for none."""
    judges = read_config(other.config).get("judge", {})
    found = {}
    for name in names:
        steps = [step for asked, step in other.responses_present() if asked == name]
        judge = next((j for j, node in judges.items() if _harmful_labels(node)
                      and steps and other.has_scores(name, steps[-1], j)), None)  # fmt: skip
        if judge is None:
            log.info("%s has no answers to %s that a judge of harm has seen: it is left out", other.path, name)
            continue
        scores = other.read_scores(name, steps[-1], judge)
        harmful = {score.prompt_id for score in scores if score.label in _harmful_labels(judges[judge])}
        answers = {row.prompt_id: row.response for row in other.read_responses(name, steps[-1])}
        prompts = [prompt for prompt in run.parts.prompts[name] if prompt.id in harmful]
        log.info("%s: %d of %d prompts have a harmful answer there; the others are left out", name, len(prompts),
                 len(run.parts.prompts[name]))  # fmt: skip
        if prompts:
            found[name] = [_begun(run, prompt, answers[prompt.id]) for prompt in prompts]
    if not found:
        raise UserError(f"prefill.source={other.path} has no harmful answer to any prompt of {', '.join(names)}")
    return found


def _begun(run: "Run", prompt: "BenchmarkPrompt", harmful: str | None) -> Begun:
    from tasft.data.tokenize import answer_ids

    return Begun(prompt, answer_ids(run.base.tokenizer, prompt.text, (harmful or "").strip(), run.format)[1])


def _digest(begun: Sequence[Begun]) -> str:
    return sha256(repr([(each.prompt.id, each.tokens) for each in begun]).encode()).hexdigest()[:16]


def _started(run: "Run", row: ResponseRow, tokens: list[int]) -> ResponseRow:
    """The row with the text that it was made to begin with; a character that the tokens hold half of is the model's."""
    text = run.base.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    common = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(text, row.response, strict=False)))
    return replace(row, started=text[:common] or None)


def _judge(run: "Run", folder: RunDir, name: str, n: int) -> None:
    """Have whole answers judged, and by judges of harm what the model has added, as far as there is no score yet."""
    from tasft.evaluate.judging import judge_rest

    config = run.config
    whole = folder.read_responses(prefilled(name, n), run.step)
    added = [replace(row, response=row.response.removeprefix(row.started or "").strip()) for row in whole]
    todo = [(prefilled(name, n), judge, whole) for judge in judges_of(config, name)]
    if n:
        todo += [(continued(name, n), judge, added) for judge in _judges_of_harm(config, name)]
    for kept_as, judge, rows in todo:
        there = folder.has_scores(kept_as, run.step, judge)
        before = folder.read_scores(kept_as, run.step, judge) if there else None
        scores = judge_rest(run.parts.judges[judge], rows, before)
        if scores != before:
            folder.write_scores(kept_as, run.step, judge, scores)


def _note_judges(config: RunConfig, folder: RunDir) -> None:
    """Write down the judges' settings; delete the scores of those that had others before."""
    from tasft.evaluate.judging import changed

    kept = read_config(folder.config).get("judge", {}) if folder.config.exists() else {}
    other = changed(kept, config.judge)
    for name, step, judge in folder.scores_present():
        if judge in other:
            folder.drop_scores(name, step, judge)
    write_atomically(folder.config, OmegaConf.to_yaml(OmegaConf.create({"judge": kept | config.judge})))


def _print(run: "Run", folder: RunDir, names: Sequence[str], tokens: Sequence[int]) -> None:
    """Harmful answers by tokens given, over the benchmarks together and of each."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    measured = points(run.folder, folder.path.name, list(run.config.judge))
    found = {(each.benchmark, each.tokens, each.alone): each.harmful for each in measured}
    title = f"harmful answers of {run.folder.path}, %, by {measured[0].judge}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in ("tokens given", "whole", "95 %", "added alone", "95 %", "n", *(names if len(names) > 1 else ())):
        table.add_column(column, justify="right")
    for n in tokens:
        whole, alone = (pooled(found[name, n, part] for name in names) for part in (False, True))
        each = [_percent(found[name, n, False])[0] for name in names] if len(names) > 1 else []
        table.add_row(str(n), *_percent(whole), *_percent(alone), str(whole.n), *each)
    console = Console(highlight=False)
    (console if console.is_terminal else Console(highlight=False, width=WIDTH)).print(table)


def _track(run: "Run", folder: RunDir) -> None:
    """Send W&B the rates of harmful answers, over the tokens given."""
    from tasft.track import track_stage

    rates: dict[int, dict[str, float | None]] = {}
    for each in points(run.folder, folder.path.name, list(run.config.judge)):
        part = "added" if each.alone else "whole"
        rates.setdefault(each.tokens, {})[f"prefill/{each.benchmark}/{part}/harmful"] = each.harmful.value
    final = {f"{name}/{tokens}": value for tokens, of_tokens in rates.items() for name, value in of_tokens.items()}
    track_stage(run.config, run.folder, f"prefill {folder.path.name}", final, sorted(rates.items()), "tokens")


def _percent(rate: Rate) -> tuple[str, str]:
    if rate.value is None or rate.low is None or rate.high is None:
        return "-", ""
    return f"{100 * rate.value:.1f}", f"{100 * rate.low:.0f}-{100 * rate.high:.0f}"


def main() -> int:
    """Run the command line; the exit code."""
    return entry(prefill, "prefill")


if __name__ == "__main__":
    sys.exit(main())
