"""Findings as tables in the terminal, and as a figure of the lengths."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasft.data.mixture import summary
from tasft.data.overlap import Overlap
from tasft.inspect.findings import PROMPTS, TOXIC_PROMPTS, TOXIC_RESPONSES, Findings, Found, counts
from tasft.schema import RunConfig, Source

SHOWN = 160  # characters of a text
WIDTH = 140  # columns, where the output is no terminal
NONE = "-"
# Okabe and Ito's, which colour-blind readers tell apart (https://jfly.uni-koeln.de/color/)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999")


def show(findings: Findings, config: RunConfig) -> None:
    """Print the findings."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    read = [each for each in findings.sources if each.examples]
    _say(console, f"data={config.data.name}", "bold")
    for each in findings.sources:
        _say(console, _origin(each))
    console.print()
    if read:
        _say(console, "Rows", "bold")
        console.print(_rows_table(read, config))
        console.print()
        _say(console, f"Lengths in {findings.unit}", "bold")
        console.print(_lengths_table(read))
        console.print()
    if findings.no_tokens:
        _say(console, f"Lengths are words, not tokens, and nothing says what is cut: {findings.no_tokens}.")
    for each in findings.sources:
        if each.rejected:
            _say(console, f"Rejected of {each.place.key}: {summary(each.rejected)}.")
    for each in read:
        _samples(console, each, config)
    if not config.inspect.harmful and any(each.place.kind in TOXIC_PROMPTS for each in read):
        _say(console, "Toxic prompts and harmful responses are shown as lengths: inspect.harmful=true shows the texts.")
    console.print()
    if read and findings.benchmarks:
        _contamination(console, read, findings, config)
    for sentence in findings.problems:
        _say(console, f"Problem: {sentence}", "bold")


def draw(findings: Findings, path: Path) -> None:
    """Write histograms of the lengths of prompts and responses, a line a source, to `path`."""
    figure = Figure(figsize=(9, 3.8), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    read = [each for each in findings.sources if each.examples]
    for panel, name in zip(figure.subplots(1, 2), ("prompt", "response"), strict=True):
        lengths = {_name(each): getattr(each, f"{name}_lengths") for each in read}
        every = [length for each in lengths.values() for length in each]
        bins = np.unique(np.geomspace(max(min(every, default=1), 1), max(every, default=1) + 1, 40).astype(int))
        for (label, values), colour in zip(lengths.items(), COLOURS, strict=False):
            share = np.full(len(values), 100 / max(len(values), 1))
            panel.hist(values, bins=bins, weights=share, histtype="step", color=colour, label=label, linewidth=1.5)
        panel.set(xscale="log", xlabel=f"{name} length ({findings.unit})", ylabel="% of the source's rows")
        panel.spines[["top", "right"]].set_visible(False)
    lines = [Line2D([], [], color=colour, label=_name(each)) for each, colour in zip(read, COLOURS, strict=False)]
    figure.legend(handles=lines, loc="outside upper center", ncols=max(len(lines), 1), frameon=False)
    figure.savefig(path, metadata={"Software": None} if path.suffix == ".png" else None)


def _origin(found: Found) -> str:
    """Where a source comes from, under which licence, or why it is not looked at."""
    place = found.place
    if place.unused:
        return f"{place.key}: {place.unused}"
    home = _home(place.source)
    licence = f" ({place.source.licence})" if place.source.licence else ""
    return f"{place.key}: {home}{licence}" + ("; cannot be read" if found.error and not found.read else "")


def _home(source: Source) -> str:
    if source.path is not None:
        return source.path
    if source.rows is not None:
        return "made by a function"
    parts = [source.id, source.subset, source.data_dir, source.split, source.revision and source.revision[:10]]
    return " ".join(part for part in parts if part)


def _rows_table(read: Sequence[Found], config: RunConfig) -> Table:
    policy, cut = config.data.contamination.policy, f"cut at\n{config.data.max_length}"
    table = _table(["read", "usable", "same\nprompt", "same\npair", "in bench-\nmarks", "can be\nused", "wanted", cut])
    for each in read:
        prompts, pairs = each.repeated
        numbers = [each.read, len(each.examples), prompts, None if each.place.kind == PROMPTS else pairs]
        numbers += [len(each.contaminated) if each.overlaps else None, each.available(policy)]
        texts = [NONE if number is None else f"{number:,}" for number in numbers]
        texts += ["all" if each.place.count is None else f"{each.place.count:,}"]
        table.add_row(_name(each), *texts, NONE if each.cut is None else f"{each.cut:,}")
    return table


def _lengths_table(read: Sequence[Found]) -> Table:
    table = _table(["of", "min", "median", "95 %", "max"])
    for each in read:
        for name, lengths in (("prompt", each.prompt_lengths), ("response", each.response_lengths)):
            if lengths:
                numbers = np.percentile(lengths, [0, 50, 95, 100], method="higher").astype(int)
                table.add_row(_name(each) if name == "prompt" else "", name, *(f"{number:,}" for number in numbers))
    return table


def _samples(console: Console, found: Found, config: RunConfig) -> None:
    kind, full = found.place.kind, config.inspect.harmful
    for each in found.examples[: config.inspect.rows]:
        _say(console, f"{_name(found)}: {each.source}", "dim")
        prompt = _shortened("\n".join(each.asked), full or kind not in TOXIC_PROMPTS)
        response = _shortened(each.response, full or kind not in TOXIC_RESPONSES)
        _say(console, f"  prompt: {prompt}" + ("" if kind == PROMPTS else f"\n  response: {response}"))


def _contamination(console: Console, read: Sequence[Found], findings: Findings, config: RunConfig) -> None:
    settings = config.data.contamination
    columns = [each.place.kind.replace("_", "\n") for each in read]
    _say(console, "Prompts that benchmarks ask: equal + nearly equal ones", "bold")
    table = _table(["prompts", *columns])
    for name, size in findings.benchmarks.items():
        cells = [counts(each, name) for each in read]
        table.add_row(name, f"{size:,}", *(f"{equal} + {near}" if equal or near else NONE for equal, near in cells))
    console.print(table)
    becomes = {"drop": "rows with such a prompt are left out", "report": "they stay", "refuse": "they stop a run"}
    nearly = f"from similarity {settings.similarity:g} on" if settings.similarity < 1 else "not looked for"
    _say(console, f"Nearly equal ones: {nearly}. Policy {settings.policy}: {becomes[settings.policy]}.")
    for each in read:
        pairs = [overlap for found in each.overlaps.values() for overlap in found]
        for overlap in sorted(pairs, key=lambda o: o.similarity)[: config.inspect.rows]:
            _say(console, _pair(each, overlap, config.inspect.harmful))


def _pair(found: Found, overlap: Overlap, full: bool) -> str:
    mine = found.asked[overlap.index]
    shown = full or found.place.kind not in TOXIC_PROMPTS or overlap.similarity == 1
    return (
        f"  {overlap.similarity:.2f} {_name(found)}: {_shortened(mine, shown)}"
        f" ~ {overlap.benchmark}: {_shortened(overlap.prompt, True)}"
    )


def _shortened(text: str, shown: bool) -> str:
    """The beginning of a text in one line; of what is not to be shown the length."""
    if not shown:
        return f"[{len(text.split()):,} words]"
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"


def _name(found: Found) -> str:
    return found.place.kind.replace("_", " ")


def _table(columns: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True)
