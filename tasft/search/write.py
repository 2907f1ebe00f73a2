"""The files of a search: trials.csv, test.csv, search.png, summary.md. Imports neither torch nor Optuna."""

from collections.abc import Sequence
from pathlib import Path

from tasft.result.rows import write_atomically
from tasft.result.statistics import mean_and_spread
from tasft.result.table import as_csv
from tasft.schema import KINDS, RunConfig
from tasft.search.figure import draw
from tasft.search.objective import Limits, Standing
from tasft.search.rows import TestRow, TrialRow, chosen_of

STATES = {"complete": "completed", "pruned": "stopped early", "fail": "failed"}


def write(
    folder: Path,
    config: RunConfig,
    trials: Sequence[TrialRow],
    tests: Sequence[TestRow],
    plain: Standing,
    asked: Limits,
    command: str,
) -> str:
    """Write all files as far as the search has come; the text of summary.md.

    `plain` is plain SFT's standing on the dev prompts, `asked` what a completed trial has to keep.
    """
    write_atomically(folder / "trials.csv", as_csv(trials, TrialRow))
    write_atomically(folder / "test.csv", as_csv(tests, TestRow))
    draw(folder / "search.png", config, trials, plain, asked)
    text = summary(config, trials, tests, plain, asked, command)
    write_atomically(folder / "summary.md", text)
    return text


def percent(value: float | None) -> str:
    """A fraction in per cent."""
    return "-" if value is None else f"{100 * value:.1f}"


def summary(
    config: RunConfig,
    trials: Sequence[TrialRow],
    tests: Sequence[TestRow],
    plain: Standing,
    asked: Limits,
    command: str,
) -> str:
    """What was searched, found and measured, as markdown."""
    settings, over = config.search, config.search.over.removeprefix("loss.")
    chosen = chosen_of(trials)
    counts = {word: sum(row.state == state for row in trials) for state, word in STATES.items()}
    hours = sum(row.seconds or 0.0 for row in trials) / 3600
    lines = [f"# λ search: {config.loss.name} on {config.model.name}, {config.data.toxic} toxic examples", ""]
    if command:
        lines += ["```", command, "```", ""]
    kinds = {kind: [name for name in settings.dev if config.benchmark[name].kind == kind] for kind in KINDS}
    refused = f", {percent(plain.over_refusal.value)} % over-refusal" if plain.over_refusal.n else ""
    lines += [
        f"Searched: {settings.over} from {settings.low:g} to {settings.high:g}, sampler {settings.sampler}, seed"
        f" {config.seed}; the least harm (answers to {', '.join(kinds['toxic'])} that are {' or '.join(settings.harm)})"
        f" with {_asked(asked)} (quality: answers to {', '.join(kinds['safe'])} that are"
        f" {' or '.join(settings.quality.outcomes)}). Plain SFT: {percent(plain.harm.value)} % harm,"
        f" {percent(plain.quality.value)} % quality{refused}.",
        "",
        f"Trials: {len(trials)} of {settings.trials}: {', '.join(f'{n} {word}' for word, n in counts.items())};"
        f" {hours:.2f} hours.",
        "",
    ]
    if chosen is None:
        return "\n".join([*lines, "No trial keeps its limits.", "", *_table(_trial_cells(trials, over)), ""])
    lines += [
        f"Chosen: {over} {chosen.value:.3g} (λ = {chosen.weight:.3g}, share {chosen.share:.3g}). On dev prompts"
        f" {percent(chosen.harm)} % harm, {percent(chosen.quality)} % quality"
        + (f", {percent(chosen.over_refusal)} % over-refusal" if chosen.over_refusal is not None else "")
        + ": the best of several, so it looks better than it is.",
        "",
    ]
    if chosen.harm is not None and plain.harm.value is not None and chosen.harm >= plain.harm.value:
        lines += ["No trial does less harm than plain SFT: λ is too small everywhere, or misses its limits.", ""]
    if tests:
        lines += [
            f"With fresh seeds ({', '.join(map(str, settings.seeds))}) on test prompts ({', '.join(settings.test)}), %,"
            " mean ± standard deviation over seeds:",
            "",
            *_table(_test_cells(tests, config)),
            "",
        ]
    return "\n".join([*lines, "The trials, on dev prompts:", "", *_table(_trial_cells(trials, over)), ""])


def _asked(asked: Limits) -> str:
    said = [f"quality of at least {percent(asked.quality)} %"] if asked.quality is not None else []
    said += [f"over-refusal of at most {percent(asked.over_refusal)} %"] if asked.over_refusal is not None else []
    return " and ".join(said)


def _test_cells(tests: Sequence[TestRow], config: RunConfig) -> list[list[str]]:
    """A header, plain SFT, the chosen λ: means over the seeds that have a number."""
    cells = [["", "seeds", "harm", "of it incoherent", "quality", "over-refusal", "keep their limits"]]
    for loss in ("sft", config.loss.name):
        rows = [row for row in tests if row.loss == loss]
        line = ["plain SFT" if loss == "sft" else loss, str(sum(row.harm is not None for row in rows))]
        for name in ("harm", "incoherent", "quality", "over_refusal"):
            values = [getattr(row, name) for row in rows if getattr(row, name) is not None]
            line.append(_mean(values))
        line.append("" if loss == "sft" else str(sum(row.keeps is True for row in rows)))
        cells.append(line)
    return cells


def _mean(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean, spread = mean_and_spread([100 * value for value in values])
    return f"{mean:.1f}" if spread is None else f"{mean:.1f} ± {spread:.1f}"


def _trial_cells(trials: Sequence[TrialRow], over: str) -> list[list[str]]:
    cells = [["trial", over, *(["λ"] if over != "weight" else ["share"]), "harm", "quality", "over-refusal", "outcome"]]
    for row in sorted(trials, key=lambda row: (row.value is None, row.value or 0.0, row.trial)):
        other = row.weight if over != "weight" else row.share
        numbers = [percent(row.harm), percent(row.quality), percent(row.over_refusal)]
        cells.append(
            [str(row.trial), *("-" if each is None else f"{each:.3g}" for each in (row.value, other)), *numbers,
             _outcome(row)]
        )  # fmt: skip
    return cells


def _outcome(row: TrialRow) -> str:
    if row.state == "pruned":
        return f"stopped at step {row.step} of {row.steps}"
    if row.state == "fail":
        return f"failed: {row.reason}"
    if row.state != "complete":
        return row.state
    return "keeps its limits" if row.keeps else "misses its limits"


def _table(cells: Sequence[Sequence[str]]) -> list[str]:
    """Markdown that is a table to the eye, too: the first and last columns to the left, numbers to the right."""
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    left = [i == 0 or cells[0][i] == "outcome" for i in range(len(widths))]

    def one(line: Sequence[str]) -> str:
        padded = (
            word.ljust(w) if to_left else word.rjust(w) for word, w, to_left in zip(line, widths, left, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (w + 2) if to_left else "-" * (w + 1) + ":" for w, to_left in zip(widths, left, strict=True))
    return [one(cells[0]), f"|{rule}|", *(one(line) for line in cells[1:])]
