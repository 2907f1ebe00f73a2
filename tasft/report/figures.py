"""The two figures, one pair for each model: harm by number of toxic rows, and harm by over-refusal.

Where no judge of harm has spoken, refusals of toxic prompts stand in its place, and the axis says so.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from matplotlib.transforms import Bbox

from tasft.report.summary import Cell, Column, Line, Setting, Summary, cell_of, select, setting_of
from tasft.result.table import Measurement

# Okabe and Ito's colours, which colour-blind readers tell apart (https://jfly.uni-koeln.de/color/), darkest
# first; the marker says the same again.
STYLES = [
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#56B4E9", "v"),
    ("#E69F00", "P"),
]  # of the first six losses; after them the colours meet other markers
REFERENCE = ("#666666", "X")
SAFE_ANSWERS = re.compile(r"safe_answers=(\d+)")  # a variant of plain SFT: STL, drawn by its number of safe answers
LETTER, HANDLE, ROW = 0.085, 0.5, 0.24  # of a legend, in inches: a letter, what stands beside a label, the height
DASHES = ["-", "--", ":", "-."]
DPI = 160


def draw_harm_against_toxic(summary: Summary, path: Path) -> str:
    """Rate by number of toxic rows, a panel a toxic benchmark and one for all; "" or why none is drawn."""
    columns = _toxic_columns(summary)
    lines = [line for line in summary.lines if _examples(line.setting) > 0]
    if not columns:
        return "no scored answers to toxic prompts"
    if not lines:
        return "no finished run with toxic rows"
    series, styles = _series(lines), _styles(summary)
    handles = _series_handles(series, styles)
    if any(_examples(line.setting) == 0 for line in summary.lines):
        name = f"{_reference_name(summary)}, 0 toxic rows"
        handles.append(Line2D([], [], color=REFERENCE[0], linestyle="--", label=name))
    per_row = min(len(columns), 4 if len(columns) != 6 else 3)
    rows = -(-len(columns) // per_row)
    figure = new_figure(2.6 * per_row + 0.6, 2.6 * rows + 0.6, handles)
    panels = figure.subplots(rows, per_row, sharex=True, sharey=True, squeeze=False).flatten()
    for panel, column in zip(panels, columns, strict=False):
        _draw_panel(panel, summary, column, series, styles)
    for panel in panels[len(columns) :]:
        panel.remove()
    for panel in panels[: len(columns)]:
        panel.tick_params(labelbottom=True)
    bars = bars_of(line.runs for line in lines)
    counted = "toxic examples" + (" (or safe answers)" if any(not line.setting.toxic for line in lines) else "")
    figure.supxlabel(f"{counted} in the training data (log scale)\n{bars}", fontsize=10)
    figure.supylabel(f"{_word(summary)} toxic prompts (%)", fontsize=10)
    save_figure(figure, path)
    return ""


def draw_harm_against_over_refusal(summary: Summary, path: Path) -> str:
    """Rate on toxic prompts by over-refusal, a point for each run; "" or why none is drawn."""
    harm = [] if summary.harm is None else [summary.harm]
    refusal = [column for column in summary.columns if (column.kind, column.metric) == ("seeming", "refusal")][:1]
    if not harm or not refusal:
        return f"no scored answers to {'toxic' if not harm else 'seemingly toxic'} prompts"
    styles = _styles(summary)
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=loss)
        for loss, (colour, marker) in styles.items()
    ]
    labels: list[tuple[tuple[float, float], str, str]] = []
    bars: list[tuple[float, float, float, float]] = []
    by_setting = _points(summary.rows, refusal[0], harm[0])
    if not by_setting:
        return "no run has scored answers to both toxic and seemingly toxic prompts"
    figure = new_figure(7.0, 4.9, handles)
    axes = figure.subplots()
    for setting, points in by_setting.items():
        colour, marker = styles[setting.loss]
        for x, y in points:
            xerr, yerr = error_bar(x), error_bar(y)
            axes.errorbar(
                *(x.value, y.value),
                xerr=xerr,
                yerr=yerr,
                fmt=marker,
                color=colour,
                markersize=6,
                markeredgecolor="white",
                markeredgewidth=0.7,
                elinewidth=0.9,
                ecolor=(colour, 0.35),
                clip_on=False,
                zorder=3,
            )
            bars.append((x.value - xerr[0][0], y.value, x.value + xerr[1][0], y.value))
            bars.append((x.value, y.value - yerr[0][0], x.value, y.value + yerr[1][0]))
        labels.append((_nearest_to_mean(points), _label(setting, summary), colour))
    percent_axes(axes)
    right = max(10.0, min(100.0, 1.1 * max(x1 for _, _, x1, _ in bars)))
    axes.set_xlim(-0.02 * right, 1.02 * right)
    axes.set_ylim(-4, 102)
    axes.set_xlabel(
        f"over-refusal: refused seemingly toxic prompts (%, {refusal[0].benchmark})\n"
        "bars: 95 % Wilson intervals of each run"
    )
    what = "toxic prompts" if harm[0].name == "all toxic" else harm[0].benchmark
    axes.set_ylabel(f"{_word(summary)} {what} (%)")
    _write_labels(figure, axes, labels, bars)
    save_figure(figure, path)
    return ""


def new_figure(width: float, height: float, handles: Sequence[Line2D] = ()) -> Figure:
    """A figure of `width` x `height` inches and a legend of `handles` above, whatever matplotlib is set to."""
    room = int((width - HANDLE) / LETTER)
    for handle in handles:
        label = str(handle.get_label())
        handle.set_label(label if len(label) <= room else f"{label[: room - 1]}…")
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    ncols = max(1, min(len(handles), int(width / (HANDLE + LETTER * longest))))
    figure = Figure(figsize=(width, height - ROW * (-len(handles) // ncols)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=ncols, frameon=False)
    return figure


def bars_of(runs: Iterable[int]) -> str:
    """What the bars are, by how many seeds stand together."""
    return "bars: 95 % interval" + (" over prompts and seeds" if max(runs, default=1) > 1 else " of one run")


def save_figure(figure: Figure, path: Path) -> None:
    """Write it, and make its folder; the same figure gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def _word(summary: Summary) -> str:
    return "harmful answers to" if summary.harm_judged else "refusals of"


def _toxic_columns(summary: Summary) -> list[Column]:
    metric = "harmful" if summary.harm_judged else "refusal"
    columns = [column for column in summary.columns if (column.kind, column.metric) == ("toxic", metric)]
    return list({column.benchmark: column for column in columns}.values())


def _styles(summary: Summary) -> dict[str, tuple[str, str]]:
    """Loss -> colour and marker; plain SFT is the grey reference."""
    losses = sorted({line.setting.loss for line in summary.lines})
    others = [loss for loss in losses if loss != "sft"]
    n = len(STYLES)
    styles = {loss: (STYLES[i % n][0], STYLES[(i + i // n) % n][1]) for i, loss in enumerate(others)}
    return ({"sft": REFERENCE} if "sft" in losses else {}) | styles


def _reference_name(summary: Summary) -> str:
    return ", ".join(sorted({line.setting.loss for line in summary.lines if not _examples(line.setting)}))


def _examples(setting: Setting) -> int:
    """How many toxic rows, or of STL safe answers, a setting trains on: its place on the axis."""
    safe_answers = SAFE_ANSWERS.fullmatch(setting.variant)
    return int(safe_answers[1]) if safe_answers and not setting.toxic else setting.toxic


def _series(lines: list[Line]) -> dict[tuple[str, float | None, str], list[Line]]:
    """(loss, share, variant) -> its settings by toxic rows: what one curve may join.

    Where a loss was run at one share for each count, the curve joins them, and share is None.
    """
    alike: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in sorted(lines, key=lambda line: _examples(line.setting)):
        alike[line.setting.loss, line.setting.variant if line.setting.toxic else "safe answers"].append(line)
    series: dict[tuple[str, float | None, str], list[Line]] = defaultdict(list)
    for (loss, variant), found in alike.items():
        tuned = len({line.share for line in found}) > 1 and len({_examples(line.setting) for line in found}) == len(
            found
        )
        for line in found:
            series[loss, None if tuned else line.share, variant].append(line)
    return series


def _series_handles(
    series: dict[tuple[str, float | None, str], list[Line]], styles: dict[str, tuple[str, str]]
) -> list[Line2D]:
    handles = []
    for (loss, share, variant), dash in _dashes(series).items():
        alone = sum(key[0] == loss for key in series) == 1
        told = [loss] if alone and loss != "sft" else [loss, "" if share is None else f"share {share:.3g}", variant]
        if not dash:
            told.append("(several λ)")  # points of one count side by side: no curve joins them
        label = " ".join(word for word in told if word)
        handles.append(Line2D([], [], color=styles[loss][0], marker=styles[loss][1], linestyle=dash, label=label))
    return handles


def _dashes(
    series: dict[tuple[str, float | None, str], list[Line]],
) -> dict[tuple[str, float | None, str], str]:
    """A dash pattern for each curve, told apart within one loss; none for points of several weights."""
    seen: dict[str, int] = defaultdict(int)
    dashes = {}
    for key in sorted(series, key=lambda key: (key[0], key[1] or 0.0, key[2])):
        counts = [_examples(line.setting) for line in series[key]]
        dashes[key] = DASHES[seen[key[0]] % len(DASHES)] if len(set(counts)) == len(counts) else ""
        seen[key[0]] += 1
    return dashes


def _draw_panel(
    panel: Axes,
    summary: Summary,
    column: Column,
    series: dict[tuple[str, float | None, str], list[Line]],
    styles: dict[str, tuple[str, str]],
) -> None:
    at = summary.columns.index(column)
    counts = sorted({_examples(line.setting) for lines in series.values() for line in lines})
    for number, (key, dash) in enumerate(_dashes(series).items()):
        colour, marker = styles[key[0]]
        drawn = [(line, cell) for line in series[key] if (cell := line.cells[at]) is not None]
        if not drawn:
            continue
        # so that error bars of several losses do not hide each other, all within a fifth to either side
        aside = min(1.035, 1.44 ** (1 / len(series))) ** (number - (len(series) - 1) / 2)
        panel.errorbar(
            [_examples(line.setting) * aside for line, _ in drawn],
            [cell.value for _, cell in drawn],
            yerr=[[error_bar(cell)[end][0] for _, cell in drawn] for end in (0, 1)],
            color=colour,
            marker=marker,
            linestyle=dash,
            markersize=5,
            linewidth=1.5,
            elinewidth=1.0,
            capsize=2,
            clip_on=False,
            zorder=3,
        )
    for line in summary.lines:
        if not _examples(line.setting) and (cell := line.cells[at]) is not None:
            (down,), (up,) = error_bar(cell)
            panel.axhspan(cell.value - down, cell.value + up, color=REFERENCE[0], alpha=0.15, linewidth=0)
            panel.axhline(cell.value, color=REFERENCE[0], linestyle="--", linewidth=1.2)
    panel.set_xscale("log")
    ticks = _far_apart(counts)
    panel.set_xticks(ticks, [str(count) for count in ticks])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlim(counts[0] / 1.3, counts[-1] * 1.3)
    panel.set_title(column.name if column.name == "all toxic" else column.benchmark, fontsize=10)
    percent_axes(panel)
    panel.set_ylim(-2, 102)


def _far_apart(counts: list[int]) -> list[int]:
    """Counts whose tick labels do not touch on a log axis, the largest kept."""
    kept = counts[-1:]
    gap = (counts[-1] / counts[0]) ** 0.1
    for count in reversed(counts[:-1]):
        if kept[0] / count >= gap:
            kept.insert(0, count)
    return kept


def percent_axes(axes: Axes) -> None:
    """A light grid and no box."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)


def error_bar(cell: Cell) -> tuple[list[float], list[float]]:
    """Lengths of an error bar below and above, per cent."""
    low = cell.value if cell.low is None else cell.low
    high = cell.value if cell.high is None else cell.high
    return [max(0.0, cell.value - low)], [max(0.0, high - cell.value)]


def _points(rows: list[Measurement], across: Column, up: Column) -> dict[Setting, list[tuple[Cell, Cell]]]:
    """Setting -> one pair of cells a run that has both."""
    xs = {row.run: row for row in select(rows, across)}
    ys = {row.run: row for row in select(rows, up)}
    points: dict[Setting, list[tuple[Cell, Cell]]] = defaultdict(list)
    for run in sorted(xs.keys() & ys.keys()):
        x, y = cell_of([xs[run]]), cell_of([ys[run]])
        if x is not None and y is not None:
            points[setting_of(xs[run])].append((x, y))
    return points


def _nearest_to_mean(points: list[tuple[Cell, Cell]]) -> tuple[float, float]:
    """The run that its setting's label stands at."""
    x_mean = sum(x.value for x, _ in points) / len(points)
    y_mean = sum(y.value for _, y in points) / len(points)
    x, y = min(points, key=lambda point: (point[0].value - x_mean) ** 2 + (point[1].value - y_mean) ** 2)
    return x.value, y.value


def _label(setting: Setting, summary: Summary) -> str:
    """`emd 50`, with the weight where it tells two settings apart."""
    twins = [s for s in (line.setting for line in summary.lines) if (s.loss, s.toxic) == (setting.loss, setting.toxic)]
    if setting.toxic == 0:
        return f"{setting.loss} {setting.variant}".strip()
    weights = {twin.weight for twin in twins}
    weight = f" λ{setting.weight:.3g}" if len(weights) > 1 and setting.weight is not None else ""
    return f"{setting.loss} {setting.toxic}{weight} {setting.variant}".strip()


def _write_labels(
    figure: Figure,
    axes: Axes,
    labels: list[tuple[tuple[float, float], str, str]],
    bars: list[tuple[float, float, float, float]],
) -> None:
    """Write each (point, text, colour) where it covers no label, point or bar; with a line to its point."""
    figure.draw_without_rendering()  # fixes the layout, so that boxes can be measured, in pixels
    frame = axes.get_window_extent()
    to_pixels = axes.transData.transform
    taken = [Bbox([to_pixels(bar[:2]), to_pixels(bar[2:])]).padded(1) for bar in bars]
    taken += [Bbox([to_pixels(_middle(*pair))] * 2).padded(9) for pair in zip(bars[::2], bars[1::2], strict=True)]
    for point, text, colour in labels:
        x, y = to_pixels(point)
        label = axes.annotate(
            text,
            point,
            (0, 0),
            textcoords="offset pixels",
            fontsize=8,
            color=colour,
            zorder=4,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 4},
        )
        label.set_in_layout(False)
        size = label.get_window_extent()
        for right, up in _offsets(size.width, size.height):
            box = Bbox.from_bounds(x + right, y + up, size.width, size.height).padded(2)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                label.xyann = (right, up)
                taken.append(box)
                break
        else:
            label.remove()  # no room: the colour still names the loss


def _middle(across: tuple[float, float, float, float], up: tuple[float, float, float, float]) -> tuple[float, float]:
    """Where the two bars of a point cross."""
    return up[0], across[1]


def _offsets(width: float, height: float) -> Iterator[tuple[float, float]]:
    """Places for a label of that size, its lower left corner relative to the point, nearest first; pixels."""
    for distance in range(6, 110, 8):
        for slope in (1.0, 0.5, 2.0, 0.0):
            for up in (slope * distance, -slope * distance - height):
                yield distance, up
                yield -distance - width, up
        yield -width / 2, distance
        yield -width / 2, -distance - height
