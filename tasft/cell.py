"""One cell of a grid, which is one run: all commands that fine-tune come through here."""

from collections.abc import Callable

from omegaconf import DictConfig

from tasft.config import checked, in_grid, plain_sft
from tasft.result.store import RunDir


def run_cell(cfg: DictConfig, looked: Callable[[int], None] | None = None, wait: bool = False) -> RunDir:
    """Fine-tune, answer and judge what `cfg` describes, as far as it is not there yet; the run's folder.

    `looked(step)` is called after each evaluation during the training. wait: for another process that is at work on
    this very run, instead of a UserError.
    """
    config = checked(cfg)  # before torch is imported: a mistake answers at once
    from tasft.execute import execute
    from tasft.prepare import prepare

    plain = None
    if config.loss.weight == "auto" and config.auto.tolerance is not None:
        # an ordinary run: one that is finished is not run again, one that another cell of a grid is at is waited for
        plain = execute(prepare(plain_sft(cfg)), wait=True)
    # in a grid: the same command was killed perhaps, and a process of its first try is still at work
    return execute(prepare(cfg), plain, wait or in_grid(), looked)
