"""The figure of a search: what the dev prompts say of each trial, over λ."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tasft.schema import RunConfig
from tasft.search.objective import Limits, Standing
from tasft.search.rows import TrialRow, chosen_of

# Okabe and Ito's colours, which colour-blind readers tell apart (https://jfly.uni-koeln.de/color/)
CURVES = {
    "harm": ("harm", "#D55E00", "o"),
    "quality": ("quality", "#0072B2", "s"),
    "over_refusal": ("over-refusal", "#009E73", "^"),
}
DPI = 160


def draw(path: Path, config: RunConfig, trials: Sequence[TrialRow], plain: Standing, asked: Limits) -> None:
    """Harm, quality and over-refusal on dev prompts over λ: completed trials filled where they keep the quality."""
    figure = Figure(figsize=(7.4, 4.2), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name in CURVES:
        _draw_rate(axes, trials, name)
    for name, at, label, dash in (
        ("harm", plain.harm.value, "plain SFT's harm", ":"),
        ("quality", asked.quality, "least quality", "--"),
        ("over_refusal", asked.over_refusal, "most over-refusal", "--"),
    ):
        if at is not None:
            axes.axhline(100 * at, color=CURVES[name][1], linestyle=dash, linewidth=1, label=label)
    chosen = chosen_of(trials)
    if chosen is not None and chosen.value is not None:
        label = f"chosen: {chosen.value:.3g}"
        axes.axvline(chosen.value, color="#bbbbbb", linewidth=6, alpha=0.5, zorder=0, label=label)
    for marker, fill, label in (
        ("o", "#444444", "keeps its limits"),
        ("o", "white", "misses them"),
        ("x", "#444444", "stopped early, last seen"),
    ):
        axes.plot([], [], linestyle="", marker=marker, markerfacecolor=fill, color="#444444", label=label)
    axes.set_xscale("log")
    axes.set_xlim(float(config.search.low or 1) / 1.15, float(config.search.high or 1) * 1.15)
    axes.set_ylim(-3, 103)
    axes.set_xlabel(f"{config.search.over} (log scale)")
    axes.set_ylabel("answers to dev prompts (%)")
    axes.set_title(f"{config.loss.name} on {config.model.name}, {config.data.toxic} toxic examples", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Software": None})


def _draw_rate(axes: Axes, trials: Sequence[TrialRow], name: str) -> None:
    """One rate of every trial that has it: a line through the completed ones, crosses where one was stopped."""
    label, colour, marker = CURVES[name]
    points = [
        (row.value, 100 * getattr(row, name), row.state, row.keeps)
        for row in trials
        if row.value is not None and getattr(row, name) is not None and row.state in ("complete", "pruned")
    ]
    if not points:
        return
    line = sorted((x, y) for x, y, state, _ in points if state == "complete")
    axes.plot([x for x, _ in line], [y for _, y in line], color=colour, linewidth=1.2, label=label)
    for x, y, state, keeps in points:
        fill, shape = (colour if keeps else "white"), (marker if state == "complete" else "x")
        axes.plot([x], [y], linestyle="", marker=shape, color=colour, markerfacecolor=fill, markersize=6, zorder=3)
