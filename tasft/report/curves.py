"""Harm against tokens of a harmful answer that were given, and against steps of tuning a tuned model again.

The numbers behind the first stand in prefill.csv; those behind the second in results.csv, at every step.
"""

import csv
import io
import textwrap
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from tasft.report.figures import DASHES, REFERENCE, STYLES, bars_of, error_bar, new_figure, percent_axes, save_figure
from tasft.report.summary import Cell, cell_of
from tasft.result.origin import AGAIN, trained_as
from tasft.result.outcome import JOINT
from tasft.result.prefill import Point, points, sources
from tasft.result.rows import write_atomically
from tasft.result.statistics import Rate, pooled
from tasft.result.store import read_config
from tasft.result.table import POOLED, Measurement, Table, finished_runs

NOTHING_AT_EVERY_STEP = "no toxic benchmark was asked at every step of every run that tunes again, and judged alike"
PARTS = {False: "whole answer", True: "what the model added"}


@dataclass(frozen=True)
class OfRun:
    """One run's rates: `label` and `dash` tell what it is of, `alone` how to tell it from others like it."""

    label: str
    dash: str
    seed: int
    alone: str
    rates: dict[int, Rate]  # by x


@dataclass(frozen=True)
class Curve:
    """Runs that differ in their seed alone: their rates by x."""

    label: str
    dash: str
    rates: dict[int, list[Rate]]


def draw_curves(root: Path, table: Table, out: Path) -> list[tuple[Path, str]]:
    """Write prefill.csv, harm-by-prefill.png and harm-by-tuning-again.png to `out`, as far as there is anything.

    Each file with why it is missing, "" where it is not.
    """
    runs = {name: (run, read_config(run.config)) for name, run in finished_runs(root).items()}
    found = [(name, source, point) for name, (run, _) in runs.items() for source in sources(run)
             for point in points(run, source)]  # fmt: skip
    drawn: list[tuple[Path, str]] = []
    if found:
        write_atomically(out / "prefill.csv", _csv(found, {name: config for name, (_, config) in runs.items()}))
        lines = _by_tokens(found, {name: config for name, (_, config) in runs.items()})
        _draw(_curves(lines), out / "harm-by-prefill.png", "tokens of a harmful answer given", even=True)
        drawn += [(out / "prefill.csv", ""), (out / "harm-by-prefill.png", "")]
    models = sorted({row.model for row in table.rows if row.model.endswith(AGAIN)})
    for model in models:
        suffix = f".{model.removesuffix(AGAIN)}" if len(models) > 1 else ""
        path = out / f"harm-by-tuning-again{suffix}.png"
        lines, asked = _by_steps(table, model, {name: each for name, (_, each) in runs.items()})
        if lines and asked:
            _draw(_curves(lines), path, f"optimizer steps of tuning again\n{_wrapped(asked)}", even=False)
        if lines:
            drawn.append((path, "" if asked else NOTHING_AT_EVERY_STEP))
    return drawn


def _by_tokens(found: Sequence[tuple[str, str, Point]], configs: dict[str, dict[str, Any]]) -> list[OfRun]:
    """A line for each run, source of harmful answers, and part of the answer; benchmarks together."""
    models = {configs[name]["model"]["name"] for name, _, _ in found}
    origins = {source == "benchmark" for _, source, _ in found}
    together: dict[tuple[str, str, bool], dict[int, list[Rate]]] = defaultdict(lambda: defaultdict(list))
    for name, source, point in found:
        together[name, source, point.alone][point.tokens].append(point.harmful)
    lines = []
    for (name, source, alone), rates in together.items():
        config = configs[name]
        words = [trained_as(config).replace("_", " ")]
        words = [str(config["model"]["name"]), *words] if len(models) > 1 else words
        words += [f"(from {source if source == 'benchmark' else 'a run'})"] if len(origins) > 1 else []
        pooled_rates = {tokens: pooled(each) for tokens, each in rates.items()}
        lines.append(OfRun(" ".join(words), PARTS[alone], config["seed"], Path(name).name, pooled_rates))
    return lines


def _by_steps(table: Table, model: str, configs: dict[str, dict[str, Any]]) -> tuple[list[OfRun], list[str]]:
    """A line for each run of `model` that tunes a tuned one again and was looked at more than once; and on what.

    Rates are over the toxic benchmarks that all these runs were asked at every step, judged alike, together: over other
    prompts at other steps a curve would bend for that alone.
    """
    asked: dict[str, dict[int, dict[str, Measurement]]] = defaultdict(lambda: defaultdict(dict))  # run, step, benchmark
    judges: dict[str, set[str]] = defaultdict(set)
    for row in table.rows:
        if row.model == model and (row.judge, row.metric, row.kind) == (JOINT, "harmful", "toxic"):
            asked[row.run][row.step][row.benchmark] = row
            judges[row.benchmark].add(row.judges)
    steps = [at for of_run in asked.values() if len(of_run) > 1 for at in of_run.values()]
    always = {name for name, decided in judges.items() if len(decided) == 1 and name != POOLED}
    always = always.intersection(*steps)
    lines = []
    for run, of_run in asked.items():
        first = next(iter(next(iter(of_run.values())).values()))
        if len(of_run) > 1:
            lines.append(OfRun(*_told_again(first, configs[run]), first.seed, Path(run).name, {
                step: pooled(_rate(row) for name, row in at.items() if name in always)
                for step, at in sorted(of_run.items())
            }))  # fmt: skip
    return lines, sorted(always) if lines else []


def _rate(row: Measurement) -> Rate:
    return Rate(round((row.value or 0) * row.n), row.n, row.unscored)


def _told_again(row: Measurement, config: dict[str, Any]) -> tuple[str, str]:
    """How the model was tuned that a run tunes again, and on what it does."""
    words = row.variant.split()
    before = [word.removeprefix("from=").replace("_", " ") for word in words if word.startswith(("from=", "from."))]
    said = ("from=", "from.", "harmful=", "safe_answers=", "data.safe.count=")
    again = [] if row.loss == "sft" else [f"{row.loss} {row.toxic}"]
    again += [word for word in words if not word.startswith(said)]
    return " ".join(before), ", ".join([_again_on(config), *again])


def _curves(lines: Sequence[OfRun]) -> list[Curve]:
    """Lines that differ in their seed alone together; one seed twice is no second seed, and stays apart."""
    times = Counter((line.label, line.dash, line.seed) for line in lines)
    twice = {key[:2] for key, count in times.items() if count > 1}
    curves: dict[tuple[str, str], Curve] = {}
    for line in lines:
        label = f"{line.label} {line.alone}" if (line.label, line.dash) in twice else line.label
        curve = curves.setdefault((label, line.dash), Curve(label, line.dash, defaultdict(list)))
        for x, rate in line.rates.items():
            curve.rates[x].append(rate)
    return list(curves.values())


def _wrapped(benchmarks: Sequence[str]) -> str:
    return textwrap.fill("on " + ", ".join(benchmarks), 90)


def _again_on(config: dict[str, Any]) -> str:
    """What the second training was on: `20 harmful rows`."""
    data = config["data"]
    parts = {"harmful": data["harmful"], "benign": data["safe"]["count"], "safely answered": data["safe_answers"]}
    return " and ".join(f"{count} {kind}" for kind, count in parts.items() if count) + " rows"


def _draw(curves: Sequence[Curve], path: Path, xlabel: str, even: bool) -> None:
    """All curves in one panel; `even`: x values side by side at equal distances."""
    figure = new_figure(6.4, 4.4)
    axes = figure.subplots()
    xs = sorted({x for curve in curves for x in curve.rates})
    places = {x: i for i, x in enumerate(xs)} if even else {x: x for x in xs}
    colours, dashes = (
        _styles([curve.label for curve in curves]),
        sorted({curve.dash for curve in curves}, key=lambda dash: (len(dash), dash)),
    )
    for curve in curves:
        cells = {places[x]: cell for x, rates in sorted(curve.rates.items()) if (cell := cell_of(rates)) is not None}
        label = curve.label if len(dashes) == 1 else f"{curve.label}, {curve.dash}"
        _line(axes, cells, colours[curve.label], DASHES[dashes.index(curve.dash) % len(DASHES)], label)
    if even:
        axes.set_xticks(list(places.values()), [str(x) for x in places])
    percent_axes(axes)
    axes.set_ylim(-2, 102)
    axes.set_xlabel(f"{xlabel}\n{bars_of(len(rates) for curve in curves for rates in curve.rates.values())}")
    axes.set_ylabel("harmful answers to toxic prompts (%)")
    longest = max(len(f"{curve.label}, {curve.dash}") for curve in curves)
    figure.legend(
        loc="outside upper center", ncols=1 if longest > 40 else 2, frameon=False, fontsize=8, handlelength=3.5
    )  # dashes need room
    save_figure(figure, path)


def _line(axes: Axes, cells: dict[int, Cell], style: tuple[str, str], dash: str, label: str) -> None:
    values = [cell.value for cell in cells.values()]
    errors = [[error_bar(cell)[end][0] for cell in cells.values()] for end in (0, 1)]
    axes.errorbar(list(cells), values, yerr=errors, color=style[0], marker=style[1], linestyle=dash, label=label,
                  markersize=5, linewidth=1.5, elinewidth=1.0, capsize=2, clip_on=False, zorder=3)  # fmt: skip


def _styles(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker by label; plain SFT is the grey reference."""
    distinct = sorted(set(labels))
    plain = [label for label in distinct if label.split()[-2:] == ["sft", "toxic0"]]
    others = [label for label in distinct if label not in plain]
    return dict.fromkeys(plain, REFERENCE) | {label: STYLES[i % len(STYLES)] for i, label in enumerate(others)}


def _csv(found: Sequence[tuple[str, str, Point]], configs: dict[str, dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow("model trained seed run source benchmark tokens part judge value low high n unscored".split())
    for run, source, point in found:
        config, rate = configs[run], point.harmful
        writer.writerow([
            config["model"]["name"], trained_as(config), config["seed"], run, source, point.benchmark, point.tokens,
            PARTS[point.alone], point.judge, rate.value, rate.low, rate.high, rate.n, rate.unscored,
        ])  # fmt: skip
    return text.getvalue()
