"""Score histograms of safe and harmful rows: how far apart a detector puts them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

# Okabe and Ito's blue and vermilion, which colour-blind readers tell apart (https://jfly.uni-koeln.de/color/)
SAFE, HARMFUL = "#0072B2", "#D55E00"
BINS = 40
DPI = 160


@dataclass(frozen=True)
class Panel:
    """One histogram: mean squared projections (N,), which rows are harmful, and where flagging begins."""

    title: str
    projections: np.ndarray
    harmful: np.ndarray
    threshold: float  # of the projections
    low_is_harmful: bool


def draw_histograms(rows: Sequence[tuple[str, Sequence[Panel]]], path: Path) -> None:
    """Write a figure with a line of panels for each (name, panels); heights are shares of the rows of one kind."""
    across = max(len(panels) for _, panels in rows)
    figure = Figure(figsize=(2.7 * across + 0.6, 2.5 * len(rows) + 1.0), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), across, sharey="row", squeeze=False)
    for line, (name, panels) in zip(axes, rows, strict=True):
        for each, panel in zip(line, panels, strict=False):
            _draw(each, panel)
        line[0].set_ylabel(f"{name}\nshare of rows (%)", fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    figure.supxlabel("mean squared projection on the top directions (log scale)", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def _draw(axes: Axes, panel: Panel) -> None:
    smallest = panel.projections.max() * 1e-6  # what lies below is at the mean for all we know
    shown = np.maximum(panel.projections, smallest)
    bins = np.geomspace(max(np.quantile(shown, 0.005), smallest), shown.max() * 1.001, BINS + 1).tolist()
    for kind, which, colour in (("safe rows", ~panel.harmful, SAFE), ("harmful rows", panel.harmful, HARMFUL)):
        values = np.maximum(shown[which], bins[0])
        weights = np.full(len(values), 100 / max(len(values), 1))
        axes.hist(values, bins, weights=weights, color=colour, alpha=0.25, linewidth=0)
        axes.hist(values, bins, weights=weights, histtype="step", color=colour, linewidth=1.3, label=kind)
    if np.isfinite(panel.threshold):
        edge = np.clip(abs(panel.threshold), bins[0], bins[-1])
        axes.axvline(edge, color="#333333", linestyle="--", linewidth=1.1, label="flagging begins")
        sides = (bins[0], edge) if panel.low_is_harmful else (edge, bins[-1])
        axes.axvspan(*sides, color="#999999", alpha=0.15, linewidth=0, label="flagged")
    axes.set_xscale("log")
    axes.set_xlim(bins[0], bins[-1])
    axes.xaxis.set_minor_formatter(NullFormatter())  # a panel of less than a decade would be full of labels
    axes.set_title(panel.title, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
