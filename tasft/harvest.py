"""The model's own harmful answers (paper 4.1): python -m tasft.harvest model=mistral7b."""

import json
import logging
import sys

from omegaconf import DictConfig

from tasft.config import checked, entry
from tasft.errors import UserError

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
    from tasft.benchmark.prompts import number
    from tasft.data.example import prompt_of
    from tasft.evaluate.judging import judge
    from tasft.parts import with_rows
    from tasft.pipeline import answer, execute, harvest_file, load_tuned, prepare
    from tasft.result.rows import write_atomically
    from tasft.source import read_rows

    source = with_rows(config.data.toxic_prompts, "data.toxic_prompts")
    texts = dict.fromkeys(prompt_of(row, source.fields) for row in read_rows(source, "data.toxic_prompts"))
    prompts = number(list(texts)[: source.count])
    run = prepare(cfg)
    folder = execute(run)
    log.info("the harvest holds harmful text: it is there to push models away from it, and is not to be passed on")
    step = len(run.batches)
    if not folder.has_responses("harvest", step):
        folder.write_responses("harvest", step, answer(run, load_tuned(run), prompts, "toxic prompts"))
    answers = folder.read_responses("harvest", step)
    wanted = config.harvest
    scores = judge(run.parts.judges[wanted.judge], answers)
    kept = [(a, s) for a, s in zip(answers, scores, strict=True) if s.label == wanted.label][: wanted.keep]
    found = sum(s.label == wanted.label for s in scores)
    log.info("%d of %d answers are %s by judge %s", found, len(scores), wanted.label, wanted.judge)
    log.info("%d are unscored; %d are kept", sum(s.score is None for s in scores), len(kept))
    rows = [
        {
            "prompt": answer.prompt,
            "response": answer.response,
            "judge": wanted.judge,
            "score": score.score,
            "model": config.model.path or config.model.name,
            "adapter": str(folder.adapter),
            "seed": config.seed,
        }
        for answer, score in kept
    ]
    if not rows:
        raise UserError(
            f"no answer is {wanted.label} by judge {wanted.judge}: give another harvest.judge or more prompts"
        )
    file = harvest_file(config)
    write_atomically(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    log.info("harvest: %s", file)


def main() -> int:
    """Run the command line; the exit code."""
    return entry(harvest, "harvest")


if __name__ == "__main__":
    sys.exit(main())
