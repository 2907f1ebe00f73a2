"""The paper's Figures 2, 3 and 4 (and 6 to 10, which are the same of other models) from runs asked while they trained.

What stands beside them of the paper is in tasft/paper.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from string import ascii_lowercase

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from tasft.paper import NOT_AVAILABLE, published
from tasft.report.figures import DASHES, STYLES, bars_of, new_figure, percent_axes, save_figure
from tasft.report.paper import NAMES, method_of
from tasft.result.outcome import JOINT
from tasft.result.statistics import estimate
from tasft.result.table import MEAN, POOLED, Measurement, Table

SCORE = "deberta"  # the paper's judge of Figures 2 and 4
PANEL = 2.9  # inches


def draw_paper_figures(table: Table, out: Path) -> list[tuple[Path, str]]:
    """Draw each figure that a run's config names as its experiment; its path, and why it is not drawn or ""."""
    drawings: dict[str, Callable[[Table, list[Measurement], Path], str]] = {
        "figure2": draw_over_steps, "figure3": draw_over_refusal, "figure4": draw_contrastive,
    }  # fmt: skip
    drawn = []
    for name, draw in drawings.items():
        rows = [row for row in table.rows if table.configs[row.run].get("experiment") == name]
        models = sorted({row.model for row in rows})
        if name == "figure3" and rows:  # all models side by side, as in the paper
            drawn.append((out / f"{name}.png", draw(table, rows, out / f"{name}.png")))
            continue
        for model in models:
            path = out / (f"{name}.{model}.png" if len(models) > 1 else f"{name}.png")
            drawn.append((path, draw(table, [row for row in rows if row.model == model], path)))
    return drawn


def draw_over_steps(table: Table, rows: list[Measurement], path: Path) -> str:
    """Figure 2: a panel for each method with a curve for each toxic benchmark, and one with the pooled harm of all."""
    scored, label = _scores(table, rows)
    pooled = [row for row in _harm(table, rows) if row.benchmark == POOLED]
    if len({row.step for row in scored}) < 2:
        return "no answers at several steps: give evaluate.every_n_steps=K to the training"
    methods = _methods(rows)
    benchmarks, last = sorted({row.benchmark for row in scored}), ascii_lowercase[len(methods)]
    colours = {name: STYLES[i % len(STYLES)] for i, name in enumerate(benchmarks)}
    handles = [_handle(colours[name], "-", NAMES.get(name, name)) for name in benchmarks]
    handles += [_handle(("black", marker), dash, f"({last}) {_name(each)}") for each, marker, dash in _plain(methods)]
    figure = new_figure(PANEL * (len(methods) + 1), 3.6, handles)
    panels = figure.subplots(1, len(methods) + 1, sharex=True)
    for place, (panel, method) in enumerate(zip(panels, methods, strict=False)):
        for name in benchmarks:
            curve = [row for row in scored if (method_of(row)[0], row.benchmark) == (method, name)]
            _line(panel, _by_step(curve), colours[name], "-", 1 if label.startswith("mean") else 100)
        _finish(panel, f"({ascii_lowercase[place]}) {_name(method)}", label)
        panel.sharey(panels[0])
    for method, marker, dash in _plain(methods):
        _line(panels[-1], _by_step([row for row in pooled if method_of(row)[0] == method]), ("black", marker), dash)
    _finish(panels[-1], f"({last}) all together", "harmful answers (%)")
    figure.supxlabel(f"optimizer steps\n{_bars(rows)}{_of_paper('figure2', rows)}", fontsize=10)
    save_figure(figure, path)
    return ""


def draw_over_refusal(table: Table, rows: list[Measurement], path: Path) -> str:
    """Figure 3: over-refusal against safety, a panel a model, a curve a method, a point a stage of the training."""
    harm = [row for row in _harm(table, rows) if row.benchmark == POOLED] or [
        row for row in _harm(table, rows) if row.kind == "toxic"
    ]
    refusal = [row for row in rows if (row.kind, row.judge, row.metric) == ("seeming", JOINT, "refusal")]
    refusal = [row for row in refusal if row.benchmark == refusal[0].benchmark]
    if not harm or not refusal:
        return f"no judged answers to {'seemingly ' if harm else ''}toxic prompts"
    both = {(row.run, row.step) for row in harm} & {(row.run, row.step) for row in refusal}
    if len({step for _, step in both}) < 2:
        return "no answers at several steps: give evaluate.every_n_steps=K to the training"
    methods, models = _methods(rows), sorted({row.model for row in rows})
    styles = {method: STYLES[i % len(STYLES)] for i, method in enumerate(methods)}
    figure = new_figure(4.6 * len(models), 4.4, [_handle(styles[each], "-", _name(each)) for each in methods])
    panels = figure.subplots(1, len(models), sharex=True, sharey=True, squeeze=False)[0]
    for panel, model in zip(panels, models, strict=True):
        for method in methods:
            xs, ys = (
                _by_step(
                    row
                    for row in each
                    if (row.model, method_of(row)[0]) == (model, method) and (row.run, row.step) in both
                )
                for each in (harm, refusal)
            )
            steps = sorted(xs)
            colour, marker = styles[method]
            safety = [_estimate(xs[step], -100, 100) for step in steps]
            over = [_estimate(ys[step]) for step in steps]
            panel.errorbar(
                [value for value, _, _ in safety], [value for value, _, _ in over],
                xerr=_lengths(safety), yerr=_lengths(over), color=colour, marker=marker, markersize=5, linewidth=1.2,
                ecolor=(colour, 0.3), elinewidth=0.8, clip_on=False, zorder=3,
            )  # fmt: skip
            if steps:
                panel.annotate(f"step {steps[-1]}", (safety[-1][0], over[-1][0]), (-4, 6), textcoords="offset points",
                               fontsize=7, color=colour, ha="right")  # fmt: skip
        percent_axes(panel)
        panel.set_title(NAMES.get(model, model), fontsize=10)
        panel.set_xlim(-2, 102)
    panels[0].set_ylabel(f"over-refusal: refused seemingly toxic prompts (%)\n{refusal[0].benchmark}", fontsize=9)
    toxic = ", ".join(sorted({name for row in harm for name in table.benchmarks(row)}))
    said = _bars(rows) + _of_paper("figure3", rows)
    figure.supxlabel(f"safety: answers to toxic prompts that are not harmful (%, {toxic})\n{said}", fontsize=9)
    save_figure(figure, path)
    return ""


def draw_contrastive(table: Table, rows: list[Measurement], path: Path) -> str:
    """Figure 4: scores over steps without and with contrastive rows, a column a loss; below, answers that are none."""
    scored, label = _scores(table, rows)
    if label.startswith("mean"):
        above, scale = scored, 1
    else:
        above, scale = [row for row in _harm(table, rows) if row.benchmark == POOLED], 100
    below = [row for row in rows if (row.judge, row.metric, row.benchmark) == (JOINT, "incoherent", POOLED)]
    if len({row.step for row in scored}) < 2:
        return "no answers at several steps: give evaluate.every_n_steps=K to the training"
    if not any("contrastive=" in row.variant for row in rows):
        return "no run with contrastive rows"
    methods = _methods(rows)
    figure = new_figure(4.4 * len(methods), 3.2 * (1 + bool(below)))
    panels = figure.subplots(1 + bool(below), len(methods), sharex=True, sharey="row", squeeze=False)
    for place, method in enumerate(methods):
        cells = sorted(
            {_cell(row) for row in rows if method_of(row)[0] == method}, key=lambda cell: (cell[0], cell[1] or 0)
        )
        for number, cell in enumerate(cells):
            style, dash = STYLES[number % len(STYLES)], "--" if not cell[0] else "-"
            words = f"with {cell[0]}" if cell[0] else "without"
            name = words if cell[1] is None else f"{words}, λ {cell[1]:.3g}"
            mine = [row for row in above if method_of(row)[0] == method and _cell(row) == cell]
            _line(panels[0][place], _pooled(mine), style, dash, scale, name)
            if below:
                mine = [row for row in below if method_of(row)[0] == method and _cell(row) == cell]
                _line(panels[1][place], _by_step(mine), style, dash)
        _finish(panels[0][place], f"{_name(method)}, contrastive rows:", label if place == 0 else "")
        panels[0][place].legend(fontsize=7, frameon=False)
        if below:
            _finish(panels[1][place], "", "incoherent answers (%)" if place == 0 else "")
    said = _bars(rows) + _of_paper("figure4", rows)
    figure.supxlabel(f"optimizer steps; answers to all toxic prompts together\n{said}", fontsize=9)
    save_figure(figure, path)
    return ""


def _of_paper(figure: str, rows: Iterable[Measurement]) -> str:
    """Lines that say what the paper has of these models, and of what our copy shows no numbers; "" for others."""
    models = {row.model for row in rows}
    cells = [cell for cell in published(figure) if cell.model in models]
    said = [f"{_name(cell.method)} {cell.value:g} {cell.metric}" for cell in cells if cell.value is not None]
    shown = {cell.metric for cell in cells if cell.value is not None}
    missing = dict.fromkeys(
        f"{_name(cell.method)}'s {cell.metric}" if cell.metric in shown else cell.metric
        for cell in cells
        if cell.value is None
    )
    lines = [f"\nthe paper: {'; '.join(said)}"] if said else []
    return "".join([*lines, f"\n{NOT_AVAILABLE} of the paper: {'; '.join(missing)}"] if missing else lines)


def _scores(table: Table, rows: Sequence[Measurement]) -> tuple[list[Measurement], str]:
    """The DeBERTa scores of the answers to each toxic benchmark, or else the rates of harm; and what they are."""
    scores = [row for row in rows if (row.kind, row.judge, row.metric) == ("toxic", SCORE, MEAN)]
    if scores:
        return scores, "mean DeBERTa score"
    return [row for row in _harm(table, rows) if row.benchmark != POOLED], "harmful answers (%)"


def _harm(table: Table, rows: Iterable[Measurement]) -> list[Measurement]:
    """The rates of harmful answers to toxic prompts by each run's judge of harm."""
    judges = {run: {made.harm for made in joints.values()} for run, joints in table.joints.items()}
    return [
        row for row in rows if (row.kind, row.metric) == ("toxic", "harmful") and row.judge in judges.get(row.run, ())
    ]


def _methods(rows: Iterable[Measurement]) -> list[str]:
    """Methods, the paper's first and in its order."""
    order = ["kto", "emd", "nlcl", "stl"]
    found = {method_of(row)[0] for row in rows}
    return [each for each in order if each in found] + sorted(found - set(order))


def _name(method: str) -> str:
    return NAMES.get(method, method)


def _plain(methods: Sequence[str]) -> list[tuple[str, str, str]]:
    """Methods told apart without colour: (method, marker, dash)."""
    return [(each, STYLES[i % len(STYLES)][1], DASHES[i % len(DASHES)]) for i, each in enumerate(methods)]


def _cell(row: Measurement) -> tuple[int, float | None]:
    """Contrastive rows and λ."""
    given = [word.partition("=")[2] for word in row.variant.split() if word.startswith("contrastive=")]
    return int(given[0]) if given else 0, row.weight


def _by_step(rows: Iterable[Measurement]) -> dict[int, list[Measurement]]:
    """Step -> a row of each run (seed)."""
    found: dict[int, list[Measurement]] = defaultdict(list)
    for row in rows:
        if row.value is not None:
            found[row.step].append(row)
    return dict(sorted(found.items()))


def _pooled(rows: Iterable[Measurement]) -> dict[int, list[Measurement]]:
    """Step -> for each run the mean over all answers to its benchmarks, without an interval where they are several."""
    found: dict[tuple[int, str], list[Measurement]] = defaultdict(list)
    for row in rows:
        if row.value is not None:
            found[row.step, row.run].append(row)
    together = []
    for of_run in found.values():
        n = sum(row.n for row in of_run)
        mean = sum((row.value or 0) * row.n for row in of_run) / n
        together.append(of_run[0] if len(of_run) == 1 else replace(of_run[0], value=mean, n=n, low=None, high=None))
    return _by_step(together)


def _estimate(rows: Sequence[Measurement], scale: float = 100, offset: float = 0) -> tuple[float, float, float]:
    """Value and the lengths of its bar below and above, 0 where there is no interval."""
    made = estimate(rows)
    assert made is not None, "steps without a value are left out"
    value = offset + scale * made.value
    ends = [offset + scale * end for end in (made.low, made.high) if end is not None]
    return (value, value - min(ends), max(ends) - value) if ends else (value, 0.0, 0.0)


def _lengths(estimates: Sequence[tuple[float, float, float]]) -> list[list[float]]:
    return [[below for _, below, _ in estimates], [above for _, _, above in estimates]]


def _line(
    panel: Axes,
    by_step: dict[int, list[Measurement]],
    style: tuple[str, str],
    dash: str,
    scale: float = 100,
    label: str | None = None,
) -> None:
    points = [_estimate(rows, scale) for rows in by_step.values()]
    panel.errorbar(
        list(by_step), [value for value, _, _ in points], yerr=_lengths(points), color=style[0], marker=style[1],
        linestyle=dash, label=label, markersize=4, linewidth=1.3, elinewidth=0.8, ecolor=(style[0], 0.4), zorder=3,
    )  # fmt: skip


def _finish(panel: Axes, title: str, ylabel: str) -> None:
    percent_axes(panel)
    panel.set_title(title, fontsize=10)
    panel.set_ylabel(ylabel, fontsize=9)
    if ylabel.startswith("harmful"):
        panel.set_ylim(-3, 103)


def _handle(style: tuple[str, str], dash: str, label: str) -> Line2D:
    return Line2D([], [], color=style[0], marker=style[1], linestyle=dash, label=label, markersize=5)


def _bars(rows: Iterable[Measurement]) -> str:
    """What points and bars are."""
    seeds = len({row.seed for row in rows})
    return f"mean of {seeds} seeds; {bars_of([seeds])}" if seeds > 1 else bars_of([1])
