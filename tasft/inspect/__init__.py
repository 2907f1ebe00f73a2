"""What a data config yields, without training: python -m tasft.inspect data=alpaca."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from tasft.config import checked, entry
from tasft.errors import UserError

log = logging.getLogger(__name__)

FIGURES = (".png", ".pdf", ".svg")


def inspect(cfg: DictConfig) -> None:
    """Print rows, rejected ones, duplicates, lengths, samples and contamination of every source that the config uses.

    Raises UserError at the end where a source cannot be read or a run would stop, when all else has been shown.
    """
    count = cfg.data.safe.count
    cfg.data.safe.count = count or 1  # a run has to be told how many; who only looks need not know
    config = checked(cfg)
    config.data.safe.count = count
    figure = Path(config.inspect.figure) if config.inspect.figure is not None else None
    if figure is not None and (figure.suffix not in FIGURES or not figure.parent.is_dir()):
        raise UserError(
            f"inspect.figure={figure}: {'no such folder' if figure.suffix in FIGURES else 'not the name of a figure'};"
            f" give a file that ends in {', '.join(FIGURES)}, in a folder that is there"
        )
    from tasft.inspect.findings import look  # imports torch
    from tasft.inspect.show import draw, show

    findings = look(config)
    show(findings, config)
    if figure is not None:
        draw(findings, figure)
        log.info("wrote %s", figure)
    if findings.problems:
        more = f" (and {len(findings.problems) - 1} more, above)" if len(findings.problems) > 1 else ""
        raise UserError(f"a run would stop: {findings.problems[0]}{more}")


def main() -> int:
    """Run the command line; the exit code."""
    return entry(inspect, "inspect")
