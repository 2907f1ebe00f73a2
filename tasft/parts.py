"""The parts that a checked config describes, built: the only place that calls hydra.utils.instantiate."""

import dataclasses
import inspect
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torch.optim import Optimizer

from tasft.benchmark.prompts import BenchmarkPrompt, read_benchmarks
from tasft.errors import Unavailable, UserError
from tasft.generator.protocol import Generator
from tasft.judge.protocol import Judge
from tasft.loss.inputs import LossInputs
from tasft.loss.objective import Objective
from tasft.loss.weighting import SafeReduction, Weighting
from tasft.schema import JUDGE_NOTES, Node, RunConfig, Source

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Missed:
    """A judge that cannot be had as things are, and why."""

    node: Node
    why: Unavailable


@dataclass(frozen=True)
class Parts:
    """What a run needs besides rows and a model."""

    objective: Objective
    make_optimizer: Callable[[Iterable[Tensor]], Optimizer]
    prompts: dict[str, list[BenchmarkPrompt]]  # by benchmark
    judges: dict[str, Judge]  # those that can be had
    missed: dict[str, Missed] = field(default_factory=dict)  # the others

    def needed(self, judge: str) -> Judge:
        """A judge that nothing can be done without; Unavailable, which says why, where it cannot be had."""
        if judge in self.missed:
            raise self.missed[judge].why
        return self.judges[judge]


def build(config: RunConfig) -> Parts:
    """Every part, so that a mistake in one is seen before anything slow starts. UserError where one cannot be built."""
    loss = config.loss
    objective = Objective(
        safe=_made("loss.safe", loss.safe),
        toxic=_made("loss.toxic", loss.toxic) if loss.toxic is not None else None,
        weight=0.0 if loss.weight in (None, "auto") else loss.weight,
        group=loss.group,
        safe_reduction=cast(SafeReduction, loss.safe_reduction),
        weighting=cast(Weighting, loss.weighting),
        reference=loss.reference,
        kl=loss.kl,
        pairs=loss.pairs,
    )
    make_optimizer = partial(_made("optimizer.factory", config.optimizer.factory), lr=config.optimizer.lr)
    _try("optimizer.factory", lambda: make_optimizer([torch.nn.Parameter(torch.zeros(1))]))
    two_tokens = LossInputs(  # with no more than the yaml says is needed
        torch.zeros(2, 2), torch.zeros(2).long(), torch.arange(2), torch.eye(2), torch.eye(2),
        ref_logps=torch.zeros(2) if loss.reference else None,
        kl=torch.zeros(()) if loss.kl else None,
        partner=torch.tensor([1, -1]) if loss.pairs else None,
    )  # fmt: skip
    _try("loss.safe", lambda: objective.safe(two_tokens))
    toxic = objective.toxic
    if toxic is not None:
        _try("loss.toxic", lambda: toxic(two_tokens))
    if config.logger.get("_partial_"):
        _made("logger", config.logger)
    return Parts(objective, make_optimizer, benchmark_prompts(config), *judges(config))


def benchmark_prompts(config: RunConfig) -> dict[str, list[BenchmarkPrompt]]:
    """The prompts of each benchmark; UserError that names every one that cannot be read."""
    made = {
        name: dataclasses.replace(each, source=with_rows(each.source, f"benchmark.{name}.source"))
        for name, each in config.benchmark.items()
    }
    return read_benchmarks(made)


def judges(config: RunConfig) -> tuple[dict[str, Judge], dict[str, Missed]]:
    """The judges, and those that cannot be had, without key, network or access; Unavailable where there is no other."""
    judges: dict[str, Judge] = {}
    missed: dict[str, Missed] = {}
    for name in config.judge:
        try:
            judges[name] = judge(config, name)
        except Unavailable as error:
            missed[name] = Missed(config.judge[name], error)
    if missed and not judges:
        raise next(iter(missed.values())).why
    for name, each in missed.items():
        log.warning("judge.%s is left out: %s", name, each.why)
    return judges, missed


def judge(config: RunConfig, name: str) -> Judge:
    """The judge that `judge.<name>` describes."""
    node = {key: value for key, value in config.judge[name].items() if key not in JUDGE_NOTES}
    return cast(Judge, _made(f"judge.{name}", node))


def generator(node: Node, key: str) -> Generator:
    """The generator that `node` describes; `key` is its name in the config."""
    return cast(Generator, _made(key, node | {"node": key}))


def with_rows(source: Source, key: str) -> Source:
    """`source` with the rows that its function makes, where it names one."""
    if source.rows is None:
        return source
    return dataclasses.replace(source, rows=_made(f"{key}.rows", source.rows))


def pretraining_texts(config: RunConfig) -> list[str] | None:
    """The texts that `data.pretraining` makes; None where it names nothing."""
    node = config.data.pretraining
    return None if node is None else _texts(json.dumps(node, sort_keys=True))


@lru_cache(maxsize=2)  # the same for every cell of a grid
def _texts(node: str) -> list[str]:
    return list(_made("data.pretraining", json.loads(node)))


def logger(config: RunConfig, folder: Path) -> Logger | None:
    """Lightning's logger that `logger` names by its _target_, else None; under _partial_: true it gets the folder."""
    node = config.logger
    if "_target_" not in node:
        return None
    made = _made("logger", node)
    if isinstance(made, partial):
        offered = {"save_dir": str(folder), "id": folder.name}
        taken = {key: offered[key] for key in offered.keys() & inspect.signature(made).parameters.keys()}
        made = _try(f"logger ({node['_target_']})", lambda: partial(made, **taken)())
    return cast(Logger, made)


def _made(key: str, node: Node) -> Any:
    return _try(f"{key} ({node.get('_target_')})", lambda: instantiate(node))


def _try(key: str, make: Callable[[], Any]) -> Any:
    """What `make` gives; whatever it raises as one sentence: targets and arguments are the user's choice."""
    try:
        return make()
    except Exception as error:  # Hydra wraps what a target raises
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise cause from None
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or [type(cause).__name__]
        said = " ".join(lines[: 2 if lines[0].endswith(":") else 1])  # Hydra's reason is on the second line
        raise UserError(f"{key} does not work: {said}") from error
