"""The parts that a checked config describes, built: the only place that calls hydra.utils.instantiate."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from hydra.utils import instantiate
from torch import Tensor
from torch.optim import Optimizer

from tasft.benchmark.prompts import BenchmarkPrompt, read_prompts
from tasft.errors import UserError
from tasft.judge.protocol import Judge
from tasft.loss.objective import Objective
from tasft.loss.weighting import SafeReduction
from tasft.schema import Node, RunConfig, Source


@dataclass(frozen=True)
class Parts:
    """What a run needs besides rows and a model."""

    objective: Objective
    make_optimizer: Callable[[Iterable[Tensor]], Optimizer]
    prompts: dict[str, list[BenchmarkPrompt]]  # by benchmark
    judges: dict[str, Judge]


def build(config: RunConfig) -> Parts:
    """Every part, so that a mistake in one is seen before anything slow starts. UserError where one cannot be built."""
    loss = config.loss
    objective = Objective(
        safe=_made("loss.safe", loss.safe),
        toxic=_made("loss.toxic", loss.toxic) if loss.toxic is not None else None,
        weight=loss.weight or 0.0,
        group=loss.group,
        safe_reduction=cast(SafeReduction, loss.safe_reduction),
    )
    factory = _made("optimizer.factory", config.optimizer.factory)
    prompts = {
        name: read_prompts(with_rows(benchmark.source, f"benchmark.{name}.source"), f"benchmark.{name}.source")
        for name, benchmark in config.benchmark.items()
    }
    judges = {name: _made(f"judge.{name}", node) for name, node in config.judge.items()}
    return Parts(objective, partial(factory, lr=config.optimizer.lr), prompts, judges)


def with_rows(source: Source, key: str) -> Source:
    """`source` with the rows that its function makes, where it names one."""
    if source.rows is None:
        return source
    return dataclasses.replace(source, rows=_made(f"{key}.rows", source.rows))


def pretraining_texts(config: RunConfig) -> list[str] | None:
    """The texts that `data.pretraining` makes; None where it names nothing."""
    node = config.data.pretraining
    return None if node is None else list(_made("data.pretraining", node))


def logger(config: RunConfig, folder: Path, name: str, group: str) -> Any:
    """The logger that mirrors metrics.jsonl, or None."""
    return _made("logger", config.logger)(name=name, group=group, save_dir=str(folder)) if config.logger else None


def _made(key: str, node: Node) -> Any:
    try:
        return instantiate(node)
    except Exception as error:  # Hydra wraps what a target raises
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise cause from None
        raise UserError(f"{key} ({node.get('_target_')}) cannot be made: {str(cause).splitlines()[0]}") from error
