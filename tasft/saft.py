"""How well SAFT finds harmful rows, at several shares of them: python -m tasft.saft experiment=saft."""

import logging
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from tasft.config import checked, entry
from tasft.errors import UserError
from tasft.schema import RunConfig

if TYPE_CHECKING:  # slow to import, and a mistake answers at once without them
    import numpy as np
    import pandas as pd

    from tasft.filter.histogram import Panel
    from tasft.prepare import Run

log = logging.getLogger(__name__)

DIRECTIONS = (1, 2, 5, 10)  # columns of the table over layers
WIDTH = 140  # columns, where the output is no terminal


@dataclass(frozen=True)
class Found:
    """One line of the report: what one way of flagging finds in one mixture."""

    harmful_share: float
    harmful: int
    settings: str  # unsupervised, or labelled: chosen on the labelled rows
    layer: int
    k: int
    harmful_score: str  # high or low
    auroc_on_labelled: float  # what the settings were chosen by; NaN where nothing was
    flagged_by: str
    flagged: int
    auroc: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class States:
    """Hidden states by layer of the safe, the harmful and the labelled rows, and which of the last are harmful."""

    safe: "dict[int, np.ndarray]"
    harmful: "dict[int, np.ndarray]"
    labelled: "dict[int, np.ndarray]"
    labels: list[bool]

    def mixed(self, rows: int, harmful: int) -> "tuple[dict[int, np.ndarray], np.ndarray]":
        """The first rows of both kinds as one mixture of `rows`; which of them are harmful (rows,)."""
        import numpy as np

        safe = rows - harmful
        states = {i: np.concatenate([self.safe[i][:safe], self.harmful[i][:harmful]]) for i in self.safe}
        return states, np.arange(rows) >= safe


def saft(cfg: DictConfig) -> None:
    """Mix `data.harmful_source` into `data.safe`, find it again; print and write how well.

    Every mixture of `saft.harmful_shares` has data.safe.count + data.harmful rows. Writes detection.csv, layers.csv,
    table.md and scores.png into <output_root>/detection/<model>-<position>.
    """
    config = checked(cfg)
    rows, counts = _mixtures(config)
    import pandas as pd

    from tasft.filter.histogram import draw_histograms
    from tasft.prepare import prepare
    from tasft.result.rows import write_atomically

    enough = cfg.copy()
    enough.data.safe.count, enough.data.harmful, enough.data.filter = rows - min(counts), max(counts), None
    states = _states(prepare(enough))
    lines: list[Found] = []
    panels: dict[str, list[Panel]] = {}
    for count in counts:
        for line, panel in _found(config, states, rows, count):
            lines.append(line)
            if panel is not None:
                panels.setdefault(line.settings, []).append(panel)
    trained_on = min(counts, key=lambda count: abs(count - config.data.harmful))
    share = f"{trained_on / rows:.0%} harmful rows"
    tables = {
        f"SAFT on {config.model.name}: {rows:,} rows, position {config.saft.position}": pd.DataFrame(
            map(asdict, lines)
        ),
        f"AUROC of high scores by layer and k, {share}; below 0.5, harmful rows score low": _by_layer(
            config, states, rows, trained_on
        ),
    }
    folder = Path(config.output_root) / "detection" / f"{config.model.name}-{config.data.name}-{config.saft.position}"
    for name, table in zip(("detection.csv", "layers.csv"), tables.values(), strict=True):
        write_atomically(folder / name, table.to_csv(index=False))
    write_atomically(folder / "table.md", "\n\n".join(f"{title}\n\n{_markdown(t)}" for title, t in tables.items()))
    draw_histograms(list(panels.items()), folder / "scores.png")
    _print(tables)
    log.info("wrote detection.csv, layers.csv, table.md and scores.png to %s", folder)


def _mixtures(config: RunConfig) -> tuple[int, list[int]]:
    """Rows of a mixture, and how many are harmful in each; UserError where a share leaves one kind out."""
    if config.loss.name != "sft":
        raise UserError(f"detection trains nothing, so loss={config.loss.name} means nothing to it: leave loss out")
    rows = (config.data.safe.count or 0) + config.data.harmful
    if not config.saft.harmful_shares:
        raise UserError("saft.harmful_shares is empty: give some, such as [0.05,0.1,0.2,0.3]")
    counts = [round(share * rows) for share in config.saft.harmful_shares]
    for share, count in zip(config.saft.harmful_shares, counts, strict=True):
        if not 0 < count < rows:
            raise UserError(
                f"a share of {share:g} of {rows} rows is {count}: raise data.safe.count, or drop this share"
            )
    return rows, counts


def _states(run: "Run") -> States:
    """Hidden states of every row in every layer, from one pass over the rows."""
    from tasft.data.tokenize import Encoder
    from tasft.flagging import rows_and_labels
    from tasft.model.hidden import hidden_states
    from tasft.prepare import labelled

    config = run.config
    encode = Encoder(run.base.tokenizer, run.format, config.data.max_length)
    safe, harmful = (run.mixture[kind].tokens for kind in ("safe", "harmful"))
    rows, labels = rows_and_labels([*safe, *harmful], labelled(config, encode))
    model = run.base.load(run.device).to(run.device)
    hidden = dict(enumerate(hidden_states(model, rows, config.saft.position, config.trainer.max_tokens or 4096)))
    first, second = len(safe), len(safe) + len(harmful)
    return States(
        {layer: each[:first] for layer, each in hidden.items()},
        {layer: each[first:second] for layer, each in hidden.items()},
        {layer: each[second:] for layer, each in hidden.items()},
        labels,
    )


def _found(config: RunConfig, states: States, rows: int, harmful: int) -> "list[tuple[Found, Panel | None]]":
    """What is found in one mixture: unsupervised, and as a labelled set chooses; a panel for each choice."""
    import numpy as np

    from tasft.filter.histogram import Panel
    from tasft.filter.saft import detection
    from tasft.flagging import detector, flags, layers_to_read

    mixed, truth = states.mixed(rows, harmful)
    share, result = harmful / rows, []
    top = replace(config.saft, quantile=share, threshold=None)
    given = [] if config.saft.quantile is None else [("saft.quantile", replace(top, quantile=config.saft.quantile))]
    ways = {"unsupervised": [("the true share", top), *given]}
    if states.labels:
        ways["labelled"] = [
            ("a threshold", replace(top, quantile=None, threshold=config.saft.threshold)),
            ("the true share", top),
            *given,
        ]
    for settings, flaggings in ways.items():
        labels = states.labels if settings == "labelled" else []
        layers = layers_to_read(config.saft, max(mixed), bool(labels))
        chosen = detector(config.saft, {i: mixed[i] for i in layers}, states.labelled, labels, config.seed)
        scores = chosen.scores(mixed[chosen.layer])
        for flagged_by, asked in flaggings:
            flagged = flags(asked, chosen, scores)
            quality = detection(scores, flagged, truth)
            sign = "high" if chosen.sign > 0 else "low"
            known = float("nan") if chosen.auroc is None else chosen.auroc
            line = Found(
                share,
                harmful,
                settings,
                chosen.layer,
                chosen.k,
                sign,
                known,
                flagged_by,
                int(flagged.sum()),
                **asdict(quality),
            )
            panel = None
            if flagged_by == flaggings[0][0]:
                edge = chosen.sign * float(scores[flagged].min()) if flagged.any() else np.inf
                title = f"{share:.0%} harmful: AUROC {quality.auroc:.2f}\n(layer {chosen.layer}, k = {chosen.k})"
                panel = Panel(title, chosen.sign * scores, truth, edge, chosen.sign < 0)
            result.append((line, panel))
    return result


def _by_layer(config: RunConfig, states: States, rows: int, harmful: int) -> "pd.DataFrame":
    """AUROC of high scores for every layer and number of directions; NaN where there are not so many."""
    import pandas as pd
    from sklearn.metrics import roc_auc_score

    from tasft.filter.saft import subspace

    mixed, truth = states.mixed(rows, harmful)
    lines = []
    for layer, hidden in mixed.items():
        found = subspace(hidden, max(DIRECTIONS), config.saft.svd, config.seed)
        line: dict[str, Any] = {"layer": layer}
        for k in DIRECTIONS:
            there = k <= len(found.directions)
            line[f"k = {k}"] = float(roc_auc_score(truth, found.scores(hidden, k))) if there else float("nan")
        lines.append(line)
    return pd.DataFrame(lines)


def _texts(table: "pd.DataFrame") -> list[list[str]]:
    """Header and cells, numbers to three digits; `-` where there is none."""

    def text(value: object) -> str:
        if not isinstance(value, float):
            return str(value)
        return "-" if value != value else f"{value:.3f}"

    return [
        [column.replace("_", " ") for column in table.columns],
        *([text(value) for value in line] for line in table.itertuples(index=False)),
    ]


def _markdown(table: "pd.DataFrame") -> str:
    header, *lines = _texts(table)
    return "".join("| " + " | ".join(line) + " |\n" for line in [header, ["--:"] * len(header), *lines])


def _print(tables: "dict[str, pd.DataFrame]") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    for title, frame in tables.items():
        header, *lines = _texts(frame)
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for column in header:
            table.add_column(column, justify="right")
        for line in lines:
            table.add_row(*line)
        console.print(title, style="bold")
        console.print(table)


def main() -> int:
    """Run the command line; the exit code."""
    return entry(saft, "saft")


if __name__ == "__main__":
    sys.exit(main())
