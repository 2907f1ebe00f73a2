"""The answers of several runs side by side: python -m tasft.ask 'ask.prompt="..."' 'ask.runs=[<folder>,<folder>]'."""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from tasft.config import checked, entry
from tasft.errors import UserError
from tasft.model.adapter import Adapter
from tasft.result.rows import ResponseRow, ScoreRow, write_atomically
from tasft.result.store import RunDir, check_writable, read_config
from tasft.schema import RunConfig

if TYPE_CHECKING:  # these bring torch
    from tasft.judge.protocol import Judge

log = logging.getLogger(__name__)

BASE = "base model"


@dataclass(frozen=True)
class Said:
    """What one model answers to one prompt, and what each judge says of it."""

    by: str
    answer: ResponseRow
    verdicts: dict[str, ScoreRow]


def ask(cfg: DictConfig) -> None:
    """Print what each run of `ask.runs`, and the base model, answers to each prompt; write it to `ask.out`, if given.

    UserError in the end where a judge could not go on: the answers and what the others say are printed and written. The
    base model is loaded once, and adapters are switched. Model, template and system prompt are those of the runs, which
    have to agree in them.
    """
    config = checked(cfg)
    prompts, runs = _prompts(config), _runs(config)
    if config.ask.out is not None:
        check_writable(Path(config.ask.out).parent)
    from tasft import parts
    from tasft.prepare import quiet

    quiet()
    judges, _ = parts.judges(config)  # those that can be had
    answers = _answers(config, runs, prompts)
    verdicts, failed = _verdicts(answers, judges)
    said = [
        [Said(by, row, {name: of[by][i] for name, of in verdicts.items()}) for i, row in enumerate(rows)]
        for by, rows in answers.items()
    ]
    if config.ask.out is not None:
        write_atomically(Path(config.ask.out), "".join(_line(each) for of_model in said for each in of_model))
    for side_by_side in zip(*said, strict=True):
        _print(side_by_side)
    if config.ask.out is not None:
        log.info("wrote %s", config.ask.out)
    if failed:
        listed = "; ".join(f"judge.{name}: {why}" for name, why in failed.items())
        raise UserError(f"{listed}. The answers are there without what it says")


def _prompts(config: RunConfig) -> list[str]:
    """The prompts; UserError where there is none, or two places to look for them."""
    given = config.ask
    if (given.prompt is None) == (given.file is None):
        raise UserError('give either ask.prompt="..." or ask.file=<file with a prompt a line>')
    if given.prompt is not None:
        texts = [given.prompt]
    else:
        try:
            texts = Path(str(given.file)).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"ask.file={given.file} cannot be read: {getattr(error, 'strerror', None) or error}"
            ) from None
    texts = [text.strip() for text in texts if text.strip()]
    if not texts:
        raise UserError("there is no prompt: ask.prompt or ask.file is empty")
    return texts


def _runs(config: RunConfig) -> dict[str, tuple[Adapter, dict[str, Any]]]:
    """Adapter and config of each run, by its name; UserError where they are not of one base model and template."""
    if not config.ask.runs:
        raise UserError("ask.runs is empty: give folders of finished runs")
    runs: dict[str, tuple[Adapter, dict[str, Any]]] = {}
    for path in config.ask.runs:
        adapter = Adapter(path, "ask.runs")
        if adapter.run is None:
            raise UserError(f"ask.runs={path} is no run: there is no config.yaml that says what its prompts look like")
        merged_in = [f"adapter {below.digest}" for below in adapter.chain[:-1]]
        said = [each for each in adapter.trained_on or [] if each and each.startswith("adapter ")]
        if adapter.trained_on is not None and said != merged_in:
            raise UserError(
                f"ask.runs={path}: the adapter below it is no longer the one that it was trained on: train it again"
            )
        short = "/".join(adapter.run.parts[-3:])
        taken = short in runs and runs[short][0].run != adapter.run  # under another output_root
        runs[str(path) if taken else short] = (adapter, read_config(RunDir(adapter.run).config))
    (first, of_first), *others = ((name, _common(*run)) for name, run in runs.items())
    for name, of_other in others:
        differing = next((key for key, value in of_first.items() if of_other[key] != value), None)
        if differing is not None:
            raise UserError(
                f"{first} and {name} differ in their {differing} ({of_first[differing]}, {of_other[differing]}):"
                " ask them one after the other"
            )
    return runs


def _common(adapter: Adapter, config: Mapping[str, Any]) -> dict[str, Any]:
    """What runs have to agree in to be asked together."""
    model, data = config["model"], config["data"]
    return {
        "base model": (adapter.trained_on or [adapter.chain[0].settings.get("base_model_name_or_path")])[0],
        "revision": model["revision"],
        "dtype": model["dtype"],
        "adapter below": [each.digest for each in adapter.chain[:-1]],
        "format": data["format"],
        "system prompt": data["system"],
    }


def _answers(
    config: RunConfig, runs: Mapping[str, tuple[Adapter, dict[str, Any]]], prompts: Sequence[str]
) -> dict[str, list[ResponseRow]]:
    """What the base model, if it is to, and each run answer to the prompts."""
    import torch
    from peft import PeftModel

    from tasft.base import base_of_run
    from tasft.benchmark.prompts import number
    from tasft.evaluate.generating import generate
    from tasft.prompt import prompt_format

    (adapter, of_run), *_ = runs.values()
    common, settings = _common(adapter, of_run), config.evaluate
    base = base_of_run(adapter)
    tokenizer = base.tokenizer
    format = prompt_format(common["format"], tokenizer, common["system prompt"])
    gpu = config.trainer.accelerator != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    tuned = PeftModel.from_pretrained(base.load(device), str(adapter.folder), adapter_name="0")
    for i, (other, _) in enumerate(runs.values()):
        if i:
            tuned.load_adapter(str(other.folder), adapter_name=str(i))
    tuned = tuned.to(device).eval()
    numbered = number(list(prompts))

    def answers(title: str) -> list[ResponseRow]:
        said = generate(
            tuned, tokenizer, list(prompts), format, settings.max_new_tokens, settings.batch_size, title,
            {"num_beams": settings.num_beams},
        )  # fmt: skip
        return [ResponseRow(p.id, p.text, a.text, a.truncated) for p, a in zip(numbered, said, strict=True)]

    found = {}
    if config.ask.base:
        with tuned.disable_adapter():
            found[BASE] = answers(BASE)
    for i, name in enumerate(runs):
        tuned.set_adapter(str(i))
        found[name] = answers(name)
    return found


def _verdicts(
    answers: Mapping[str, list[ResponseRow]], judges: "Mapping[str, Judge]"
) -> tuple[dict[str, dict[str, list[ScoreRow]]], dict[str, str]]:
    """What each judge says of each model's answers; the judges that could not go on, and why."""
    from tasft.evaluate.judging import going_on, judge

    verdicts, failed = {}, dict[str, str]()
    for name, each in judges.items():
        with going_on(name, each, failed):
            verdicts[name] = {by: judge(each, rows) for by, rows in answers.items()}
    return verdicts, failed


def _line(said: Said) -> str:
    verdicts = {name: {"score": v.score, "label": v.label, "reason": v.reason} for name, v in said.verdicts.items()}
    answer = said.answer
    row = {"prompt": answer.prompt, "by": said.by, "response": answer.response, "truncated": answer.truncated}
    return json.dumps(row | {"judges": verdicts}, ensure_ascii=False) + "\n"


def _verdict(score: ScoreRow) -> str:
    if score.score is None:
        return f"unscored ({score.reason})"
    return score.label if score.label is not None else f"{score.score:.3g}"


def _print(said: Sequence[Said]) -> None:
    """The answers to one prompt in columns, the verdicts beneath."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(said[0].answer.prompt), title_justify="left", box=SIMPLE_HEAD, expand=True)
    for each in said:
        table.add_column(Text(each.by), ratio=1, overflow="fold")
    table.add_row(*(Text(each.answer.response or "(nothing)") for each in said))
    for name in said[0].verdicts:
        table.add_row(*(Text(f"{name}: {_verdict(each.verdicts[name])}", style="dim") for each in said))
    Console(highlight=False).print(table)


def main() -> int:
    """Run the command line; the exit code."""
    return entry(ask, "ask")


if __name__ == "__main__":
    sys.exit(main())
