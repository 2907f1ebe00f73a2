"""Answers that begin with a harmful one's first tokens: python -m tasft.prefill experiment=demo loss=emd data.toxic=50.

A model that was tuned on whole answers may refuse with its first words alone; given those of a harmful answer, it may
go on with it (Qi et al. 2024, https://arxiv.org/abs/2406.05946).
"""

import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from hashlib import sha256
from itertools import product, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from tasft.config import checked, entry, judges_of
from tasft.errors import UserError
from tasft.result.prefill import Point, continued, folder_of, points, prefilled
from tasft.result.rows import ResponseRow, write_atomically
from tasft.result.statistics import Rate, pooled
from tasft.result.store import RunDir, read_config
from tasft.schema import RunConfig

if TYPE_CHECKING:  # these bring torch
    from tasft.benchmark.prompts import BenchmarkPrompt
    from tasft.evaluate.judging import Asked
    from tasft.prepare import Run

log = logging.getLogger(__name__)

WIDTH = 140  # columns, where the output is no terminal
MACHINE = ("device", "versions")  # of what stands beside answers: what no key of the config decides
BENCHMARK = "benchmark"  # the source whose answers stand in the benchmark itself


@dataclass(frozen=True)
class HarmfulAnswer:
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
    from tasft.evaluate.judging import judge_all, say_what_failed
    from tasft.execute import alone, check_evaluation, load_tuned
    from tasft.prepare import prepare
    from tasft.train.shard import memory_freed

    run = prepare(cfg)
    if not run.folder.finished:
        raise UserError(f"{run.folder.path} is no finished run: give the same keys to python -m tasft.run first")
    _check(run.config)  # without the judges that cannot be had
    check_evaluation(run)
    source = config.prefill.source
    begun = _from_benchmarks(run, names) if source is None else _from_run(run, RunDir(Path(source)), names)
    folder = folder_of(run.folder, BENCHMARK if source is None else Path(source).resolve().name)
    model = cache(partial(load_tuned, run))  # loaded for the first answer that is not there
    with alone(folder.path):
        _note(run, folder, {name: _digest(answers) for name, answers in begun.items()})
        for name, answers in begun.items():
            for n in tokens:
                _answer(run, folder, model, name, answers, n)
        model.cache_clear()
        memory_freed()
        todo = [each for name in begun for n in tokens for each in _asked(run, folder, name, n)]
        failed = judge_all(run.parts.judges, todo)
    _print(run, folder, list(begun), tokens)
    _track(run, folder)
    log.info("answers and scores: %s", folder.path)
    say_what_failed(failed)


def _answer(
    run: "Run", folder: RunDir, model: Callable[[], Any], name: str, answers: Sequence[HarmfulAnswer], n: int
) -> None:
    """Have the prompts answered with the first n tokens given, if they are not; after a kill only what is not there."""
    from tasft.execute import answer_after, deciding_answers

    given = [each.tokens[:n] for each in answers]
    shorter = sum(len(each) < n for each in given)
    if shorter:
        log.info("%s: %d of %d harmful answers have fewer than %d tokens: they are given whole", name, shorter,
                 len(answers), n)  # fmt: skip
    decided = deciding_answers(run, run.step) | {"answers": _digest(answers), "tokens": n, "shorter": shorter}
    kept_as = prefilled(name, n)
    if folder.has_responses(kept_as, run.step):
        before = folder.read_settings(kept_as, run.step)
        if all(before.get(key) == decided.get(key) for key in before.keys() | decided.keys() if key not in MACHINE):
            return
    folder.drop_scores(kept_as, run.step)
    folder.drop_scores(continued(name, n), run.step)
    in_memory = model() if run.config.evaluate.server.base_url is None else None
    rows = answer_after(
        run, run.step, in_memory, [each.prompt for each in answers], f"{name} after {n} tokens",
        folder.unfinished(kept_as, run.step), given,
    )  # fmt: skip
    started = [_started(run, row, first) for row, first in zip(rows, given, strict=True)]
    folder.write_responses(kept_as, run.step, started, decided)


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


def _from_benchmarks(run: "Run", names: Sequence[str]) -> dict[str, list[HarmfulAnswer]]:
    """The harmful answers that the benchmarks bring, and their prompts; UserError where none brings any."""
    found = {}
    for name in names:
        prompts = run.parts.prompts[name]
        begun = [_harmful_answer(run, prompt, prompt.harmful) for prompt in prompts if (prompt.harmful or "").strip()]
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


def _from_run(run: "Run", other: RunDir, names: Sequence[str]) -> dict[str, list[HarmfulAnswer]]:
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
            found[name] = [_harmful_answer(run, prompt, answers[prompt.id]) for prompt in prompts]
    if not found:
        raise UserError(f"prefill.source={other.path} has no harmful answer to any prompt of {', '.join(names)}")
    return found


def _harmful_answer(run: "Run", prompt: "BenchmarkPrompt", harmful: str | None) -> HarmfulAnswer:
    from tasft.data.tokenize import answer_ids

    return HarmfulAnswer(prompt, answer_ids(run.base.tokenizer, prompt.text, (harmful or "").strip(), run.format)[1])


def _digest(begun: Sequence[HarmfulAnswer]) -> str:
    return sha256(repr([(each.prompt.id, each.tokens) for each in begun]).encode()).hexdigest()[:16]


def _started(run: "Run", row: ResponseRow, tokens: list[int]) -> ResponseRow:
    """The row with the text that it was made to begin with; a character that the tokens hold half of is the model's."""
    text = run.base.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    common = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(text, row.response, strict=False)))
    return replace(row, started=text[:common] or None)


def _asked(run: "Run", folder: RunDir, name: str, n: int) -> list["Asked"]:
    """What is to be judged: the whole answers, and for judges of harm what the model has added."""
    from tasft.evaluate.judging import Asked

    def whole() -> list[ResponseRow]:
        return folder.read_responses(prefilled(name, n), run.step)

    def added() -> list[ResponseRow]:
        return [replace(row, response=row.response.removeprefix(row.started or "").strip()) for row in whole()]

    todo = [(prefilled(name, n), judge, whole) for judge in judges_of(run.config, name)]
    if n:
        todo += [(continued(name, n), judge, added) for judge in _judges_of_harm(run.config, name)]
    return [
        Asked(judge, rows, folder.scores(kept_as, run.step, judge), f"answers to {kept_as}")
        for kept_as, judge, rows in todo
    ]


def _note(run: "Run", folder: RunDir, answers: dict[str, str]) -> None:
    """Write down the judges' settings, and by benchmark a digest of the harmful answers that are begun.

    Scores of judges that had other settings before are dropped, or labelled anew.
    """
    from tasft.evaluate.judging import heed

    kept, now = read_config(folder.config) if folder.config.exists() else {}, run.config.judge
    judges = kept.get("judge", {})
    heed(folder, judges, now, run.parts.judges.keys())
    noted = {"judge": judges | now, "answers": kept.get("answers", {}) | answers}
    write_atomically(folder.config, OmegaConf.to_yaml(OmegaConf.create(noted)))


def _print(run: "Run", folder: RunDir, names: Sequence[str], tokens: Sequence[int]) -> None:
    """Harmful answers by tokens given: of each benchmark, and of those together that one judge of harm decides."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    found = [each for each in points(run.folder, folder.path.name, list(run.config.judge))
             if each.benchmark in names and each.tokens in tokens]  # fmt: skip
    if len(names) > 1 and len({each.judge for each in found}) == 1:
        for n, alone in product(tokens, (False, True)):
            these = [each for each in found if (each.tokens, each.alone) == (n, alone) and each.benchmark in names]
            if len(these) == len(names):
                shorter = sum(each.shorter for each in these)
                found.append(Point("all", n, alone, pooled(each.harmful for each in these), these[0].judge, shorter))
    title = f"harmful answers of {run.folder.path}, %"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("benchmark")
    table.add_column("judge of harm")
    numbers = ("tokens given", "of shorter answers", "whole", "95 %", "n", "unscored")
    for column in (*numbers, "added alone", "95 %", "n", "unscored"):
        table.add_column(column, justify="right")
    both: dict[tuple[str, int], list[Point]] = defaultdict(list)  # whole, and what was added
    for each in found:
        both[each.benchmark, each.tokens].append(each)
    for (name, n), parts in both.items():
        rates = [cell for part in parts for cell in _cells(part.harmful)]
        table.add_row(name, parts[0].judge, str(n), str(parts[0].shorter), *rates, end_section=n == max(tokens))
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


def _cells(rate: Rate) -> tuple[str, str, str, str]:
    """Rate and interval in percent, scored and unscored answers."""
    if rate.value is None or rate.low is None or rate.high is None:
        return "-", "", str(rate.n), str(rate.unscored)
    return f"{100 * rate.value:.1f}", f"{100 * rate.low:.0f}-{100 * rate.high:.0f}", str(rate.n), str(rate.unscored)


def main() -> int:
    """Run the command line; the exit code."""
    return entry(prefill, "prefill")


if __name__ == "__main__":
    sys.exit(main())
