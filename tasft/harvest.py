"""The model's own harmful answers (paper 4.1): python -m tasft.harvest model=mistral7b."""

import json
import logging
import sys
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from tasft.config import checked, entry
from tasft.errors import UserError
from tasft.schema import RunConfig

if TYPE_CHECKING:  # both bring torch
    from tasft.benchmark.prompts import BenchmarkPrompt
    from tasft.prepare import Run

log = logging.getLogger(__name__)


def harvest(cfg: DictConfig) -> None:
    """Fine-tune on the safe rows, answer the toxic prompts, keep the first `harvest.keep` harmful answers.

    Writes <harvest.root>/<model>/toxic.jsonl. Plain SFT is an ordinary run: one that is finished is not run again.
    """
    config = checked(cfg)
    if config.loss.name != "sft":
        raise UserError(
            f"the harvest comes from plain SFT, not from loss={config.loss.name}: leave loss out, or give loss=sft"
        )
    from tasft.execute import answer, answers_are_of, execute, load_tuned
    from tasft.prepare import harvest_file, prepare
    from tasft.result.rows import write_atomically

    prompts = _toxic_prompts(config)
    run = prepare(cfg)
    folder = execute(run)
    log.info("the harvest holds harmful text: it is there to push models away from it, and is not to be passed on")
    if not answers_are_of(folder, "harvest", run.step, prompts):
        folder.write_responses("harvest", run.step, answer(run, load_tuned(run), prompts, "toxic prompts"))
    rows, file = _kept(run), harvest_file(config)
    write_atomically(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    log.info("harvest: %s", file)


def _toxic_prompts(config: RunConfig) -> "list[BenchmarkPrompt]":
    """The prompts of data.toxic_prompts, each once, in the order of the source."""
    from tasft.benchmark.prompts import number
    from tasft.data.example import Rejected, prompt_of
    from tasft.data.mixture import summary
    from tasft.parts import with_rows
    from tasft.source import read_rows

    source = with_rows(config.data.toxic_prompts, "data.toxic_prompts")
    read = [prompt_of(row, source.fields) for row in read_rows(source, "data.toxic_prompts")]
    rejected = [each for each in read if isinstance(each, Rejected)]
    if rejected:
        log.info("passed over toxic prompts: %s", summary(rejected))
    texts = dict.fromkeys(each for each in read if isinstance(each, str))
    return number(list(texts)[: source.count])


def _kept(run: "Run") -> list[dict[str, object]]:
    """The answers that the judge gives the wanted label, with what they come from; UserError where there is none."""
    from tasft.evaluate.judging import judge
    from tasft.prepare import model_identity

    config, wanted = run.config, run.config.harvest
    answers = run.folder.read_responses("harvest", run.step)
    scores = judge(run.parts.judges[wanted.judge], answers)
    found = [(a, s) for a, s in zip(answers, scores, strict=True) if s.label == wanted.label]
    if not found:
        labels = ", ".join(sorted({score.label or "unscored" for score in scores}))
        raise UserError(
            f"no answer is {wanted.label} by judge {wanted.judge}, which says {labels}:"
            " give another harvest.label or harvest.judge, or more prompts"
        )
    unscored = sum(score.score is None for score in scores)
    log.info("%d of %d answers are %s by judge %s", len(found), len(scores), wanted.label, wanted.judge)
    log.info("%d are unscored; %d are kept", unscored, min(len(found), wanted.keep))
    if wanted.judge == "refusal":
        log.info("judge refusal reads opening words: what is kept is no refusal, and nothing has judged its harm")
    return [
        {
            "prompt": answer.prompt,
            "response": answer.response,
            "judge": wanted.judge,
            "score": score.score,
            "model": model_identity(config),
            "adapter": str(run.folder.adapter),
            "seed": config.seed,
        }
        for answer, score in found[: wanted.keep]
    ]


def main() -> int:
    """Run the command line; the exit code."""
    return entry(harvest, "harvest")


if __name__ == "__main__":
    sys.exit(main())
