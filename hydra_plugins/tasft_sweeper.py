"""Hydra's door to tasft/sweep.py: Hydra looks for sweepers in this package only, and imports it at every start."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class TasftSweeper(Sweeper):
    """Every cell of a grid that is not there yet, through the chosen launcher; see `tasft.sweep.Sweep`."""

    def __init__(self, max_batch_size: int | None, params: dict[str, Any], cells: Sequence[str]) -> None:
        self.max_batch_size, self.params, self.cells = max_batch_size, params, cells

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher; what it runs is each cell in a wrapper that notes how it ends."""
        from tasft.sweep import CellTask

        self.hydra_context, self.config = hydra_context, config
        self.task = CellTask(task_function, Path(config.hydra.sweep.dir).absolute())
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=self.task, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the grid; UserError at the end where a cell failed."""
        from tasft.sweep import Sweep, expand

        # as they are written: made part of a text, a list is no choices any more
        written: Any = OmegaConf.to_container(self.config.hydra.sweeper.cells, resolve=False)
        lines = [str(line) for line in written] or [""]
        cells = expand(lines, dict(self.params), arguments, self.config, self.hydra_context.config_loader)
        Sweep(self.config, self.hydra_context.config_loader, self.task, self.launcher, sys.stderr).run(
            cells, self.max_batch_size
        )
