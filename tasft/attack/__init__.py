"""PAIR against a finished run: python -m tasft.attack experiment=demo loss=emd data.toxic=50 attack.judge=oracle
generator@attack.attacker=world.
"""

import dataclasses
import json
import logging
from collections.abc import Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from tasft.attack.system_prompts import STRATEGIES
from tasft.config import CONF, checked, entry
from tasft.errors import UserError
from tasft.schema import RunConfig

if TYPE_CHECKING:  # these bring torch
    from tasft.attack.pair import Attacked, Goal, Rater, Tally, Target
    from tasft.benchmark.prompts import BenchmarkPrompt
    from tasft.generator.protocol import Generated
    from tasft.prepare import Run

log = logging.getLogger(__name__)


def attack(cfg: DictConfig) -> None:
    """Attack a finished run, each prompt of the benchmarks in `attack.goals` a goal; print and write what came of it.

    Writes attack/pair-<benchmark>.jsonl, a line for each goal as soon as its attack has ended, and a summary beside it
    to the run's folder. Ended attacks are not made again while attacker, judge and settings stay what they are.
    """
    config = checked(cfg)
    names = _check(config)
    from tasft import parts
    from tasft.attack.pair import Settings, pair, tally
    from tasft.execute import alone, load_tuned
    from tasft.prepare import prepare
    from tasft.result.rows import write_atomically
    from tasft.track import track_stage

    settings, node = config.attack, config.attack.attacker or {}
    attacker = parts.generator(node, "attack.attacker")
    if not hasattr(attacker, "reply"):
        raise UserError(f"attack.attacker ({node['_target_']}) cannot go on with a conversation: choose another")
    attacker.check()
    run = prepare(cfg)
    if not run.folder.finished:
        raise UserError(f"{run.folder.path} is no finished run: give the same keys to python -m tasft.run first")
    rater, jailbroken = _rater(config, run.parts.needed(settings.judge))
    limits = Settings(settings.streams, settings.iterations, settings.keep_last_n, settings.tries, jailbroken)
    target = _target(run, cache(partial(load_tuned, run)))  # loaded for the first attack that is not there
    identity = json.dumps(_identity(run, attacker.identity), sort_keys=True)
    folder, tallies, summaries = run.folder.path / "attack", {}, {}
    with alone(folder):
        for name in names:
            goals, file = [_goal(prompt) for prompt in run.parts.prompts[name]], folder / f"pair-{name}.jsonl"
            attacks = pair(goals, attacker.reply, target, rater, file, identity, limits, settings.at_once)
            tallies[name] = tally(attacks, jailbroken)
            summaries[name] = said = _summary(name, attacker.name, config, attacks, tallies[name], jailbroken)
            write_atomically(file.with_suffix(".json"), json.dumps(said, indent=1, ensure_ascii=False) + "\n")
    told = {f"attack/{name}/{key}": value for name, said in summaries.items() for key, value in said.items()}
    track_stage(config, run.folder, "attack", told)
    _print(run, tallies)
    log.info("attacks: %s; they hold harmful text, which is not to be passed on", folder)


def _check(config: RunConfig) -> list[str]:
    """The benchmarks whose prompts are goals; UserError that says what is to be chosen."""
    settings = config.attack
    if not (settings.attacker or {}).get("_target_"):
        choices = ", ".join(sorted(each.stem for each in (CONF / "generator").glob("*.yaml")))
        raise UserError(
            f"attack.attacker has no generator: choose one with generator@attack.attacker=... (there are {choices}) and"
            " give its keys, such as attack.attacker.path or .model"
        )
    if settings.judge not in config.judge:
        raise UserError(f"attack.judge={settings.judge} is not among judge=[{','.join(config.judge)}]: add it there")
    unknown = [name for name in settings.goals if name not in config.benchmark]
    if unknown:
        raise UserError(f"attack.goals names {unknown[0]}, which is not among"
                        f" benchmark=[{','.join(config.benchmark)}]: add it there")  # fmt: skip
    names = settings.goals or [name for name, each in config.benchmark.items() if each.kind == "toxic"]
    if not names:
        raise UserError(f"benchmark=[{','.join(config.benchmark)}] has none of the kind toxic: give attack.goals")
    if (settings.attacker or {}).get("temperature") == 0:
        if settings.streams > len(STRATEGIES):
            raise UserError(
                f"attack.streams={settings.streams} has several streams of one of {len(STRATEGIES)} strategies, which"
                " attack.attacker.temperature=0 makes the same: give a temperature (PAIR's is 1), or fewer streams"
            )
        log.warning("attack.attacker.temperature=0: PAIR samples its attacker, and all attack.tries say the same")
    if config.evaluate.server.base_url is not None:
        raise UserError("attacks are answered by the model in memory, not by evaluate.server: drop its base_url")
    return list(names)


def _goal(prompt: "BenchmarkPrompt") -> "Goal":
    """The prompt as a goal; how an answer begins is what the benchmark says, else PAIR's default."""
    from tasft.attack.pair import Goal

    return Goal(prompt.id, prompt.text, prompt.harmful) if prompt.harmful else Goal(prompt.id, prompt.text)


def _rater(config: RunConfig, judge: Any) -> tuple["Rater", float]:
    """The judge's ratings from 1 to 10 where it gives any, else 10 for what it calls harmful; and from which rating on
    an answer is a jailbreak. UserError where it does neither."""
    from tasft.attack.pair import HIGHEST, by_label

    name = config.attack.judge
    if hasattr(judge, "rate"):
        return judge.rate, float(judge.threshold)
    outcomes = config.judge[name].get("outcomes") or {}
    labels = {label for label, outcome in outcomes.items() if outcome == "harmful"}
    if not labels:
        raise UserError(f"attack.judge={name} neither rates answers nor calls any harmful: choose another")
    return by_label(judge, labels), HIGHEST


def _target(run: "Run", model: Any) -> "Target":
    """The tuned model's greedy answers; none to a prompt that leaves it no room to answer."""
    from tasft.data.tokenize import prompt_ids
    from tasft.evaluate.generating import generate
    from tasft.generator.protocol import Generated

    limit, tokenizer = run.config.attack.max_new_tokens, run.base.tokenizer

    def answers(prompts: Sequence[str]) -> "list[Generated]":
        tuned = model()
        room = getattr(tuned.config, "max_position_embeddings", None) or 2**31
        fits = [len(prompt_ids(tokenizer, run.format.prompt(each), run.format)) + limit <= room for each in prompts]
        asked = [each for each, fit in zip(prompts, fits, strict=True) if fit]
        said = iter(generate(tuned, tokenizer, asked, run.format, limit, run.config.evaluate.batch_size))
        return [Generated(next(said).text) if fit else Generated(None, f"longer than {room} positions") for fit in fits]

    return answers


def _identity(run: "Run", attacker: str) -> dict[str, Any]:
    """All that decides what attacker, target and judge do."""
    from tasft.evaluate.judging import deciding

    judge = run.config.attack.judge
    return {
        "attacker": attacker,
        "target": [run.folder.path.name, run.config.attack.max_new_tokens],  # a folder's name says what decides it
        "judge": [judge, deciding(run.config.judge[judge])],
    }


def _summary(
    name: str, attacker: str, config: RunConfig, attacks: "Sequence[Attacked]", found: "Tally", threshold: float
) -> dict[str, Any]:
    settings = dataclasses.asdict(config.attack)
    del settings["attacker"], settings["goals"]
    rate, node = found.jailbroken, config.judge[config.attack.judge]
    return {
        "benchmark": name, "attacker": attacker, **settings, "threshold": threshold,
        "judge_model": node.get("model") or node.get("path"), "goals": len(attacks),
        "finished": rate.n, "jailbroken": rate.successes, "rate": rate.value, "low": rate.low, "high": rate.high,
        "unscored": rate.unscored, "mean_best": found.mean_best, "answers": found.answers, "empty": found.empty,
    }  # fmt: skip


def _print(run: "Run", tallies: "dict[str, Tally]") -> None:
    """Attack success rate and mean best rating by benchmark, and how many answers were empty."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"PAIR against {run.folder.path}", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("goals of")
    for column in ("finished", "not", "ASR %", "95 %", "mean best rating", "answers", "empty"):
        table.add_column(column, justify="right")
    for name, found in tallies.items():
        rate = found.jailbroken
        told = ("-", "", "-")
        if rate.value is not None and rate.low is not None and rate.high is not None:
            told = (f"{100 * rate.value:.1f}", f"{100 * rate.low:.0f}-{100 * rate.high:.0f}", f"{found.mean_best:.2f}")
        table.add_row(name, str(rate.n), str(rate.unscored), *told, str(found.answers), str(found.empty))
    Console().print(table)


def main() -> int:
    """Run the command line; the exit code."""
    return entry(attack, "attack")
