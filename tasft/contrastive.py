"""Seemingly toxic prompts with helpful answers (paper 4.3.6):

python -m tasft.contrastive model=mistral7b generator@contrastive.prompts=openai contrastive.prompts.model=<name> \
    generator@contrastive.answers=hf contrastive.answers.path=<model>
"""

import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from tasft.config import CONF, checked, entry
from tasft.errors import UserError
from tasft.schema import RunConfig

if TYPE_CHECKING:  # these are slow to import
    from tasft.data.toxic_words import ToxicWord
    from tasft.generator.protocol import Generated
    from tasft.generator.select import Counts, Written
    from tasft.judge.protocol import Judge
    from tasft.result.rows import ScoreRow

log = logging.getLogger(__name__)

JUDGED_AT_ONCE = 256  # answers: as many may be judged again after a kill


def contrastive(cfg: DictConfig) -> None:
    """Toxic words, seemingly toxic prompts with them, answers to those; what the filters leave are the pairs.

    Writes <contrastive.root>/<data.name>/pairs.jsonl and report.json. Replies, answers and scores lie beside them as
    they came in: the same command goes on where it stopped, and with other settings it asks for what is new in them.
    """
    config = checked(cfg)
    _check(config)
    from filelock import FileLock, Timeout

    from tasft import parts
    from tasft.evaluate.judging import deciding
    from tasft.generator.asking import request
    from tasft.generator.select import select_pairs, select_prompts
    from tasft.result.rows import write_atomically
    from tasft.result.store import check_writable
    from tasft.training_data import contrastive_file

    settings, file = config.contrastive, contrastive_file(config)
    check_writable(file.parent)
    prompter = parts.generator(settings.prompts or {}, "contrastive.prompts")
    answerer = parts.generator(settings.answers or {}, "contrastive.answers")
    judges = {name: parts.judge(config, name) for name in settings.judges}
    benchmarks = parts.benchmark_prompts(config)
    prompter.check()
    answerer.check()
    toxic = _toxic_prompts(config)
    words = _words(config, toxic)
    report: dict[str, Any] = {
        "prompter": prompter.name, "answerer": answerer.name, "judges": settings.judges, "drop": settings.drop,
        "toxic_prompts": len(toxic), "words": len(words),
    }  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(file.parent / ".lock", timeout=0):
            write_atomically(file.parent / "words.jsonl", _lines([dataclasses.asdict(word) for word in words]))
            replies = _asked(
                file.parent / f"prompts-{_digest(prompter.identity, request('', settings.per_word))}.jsonl",
                [word.word for word in words], prompter.batch_size,
                partial(prompter.write, count=settings.per_word), "prompts for toxic words",
            )  # fmt: skip
            del prompter  # a model on this machine makes room for the next
            written, about_prompts = select_prompts(words, replies, settings.per_word, toxic)
            prompts = _without_benchmarks(config, written, benchmarks, about_prompts)
            if not prompts:
                raise UserError(
                    f"no seemingly toxic prompt is left of {about_prompts.made} ({_reasons(about_prompts)}):"
                    f" read what contrastive.prompts says in {file.parent}, and choose another generator"
                )
            answers = _asked(
                file.parent / f"answers-{_digest(answerer.identity)}.jsonl",
                [each.prompt for each in prompts], answerer.batch_size, answerer.answer, "answers",
            )  # fmt: skip
            del answerer
            scores = {}
            for name, judge in judges.items():
                kept_in = file.parent / f"scores-{name}-{_digest(deciding(config.judge[name]))}.jsonl"
                scores[name] = _scores(kept_in, judge, answers)
            pairs, about_answers = select_pairs(prompts, answers, scores, settings.drop)
            made_by = {key: report[key] for key in ("prompter", "answerer")}
            report |= {"prompts": vars(about_prompts), "answers": vars(about_answers)}
            report["date"] = datetime.now(UTC).isoformat(timespec="seconds")
            write_atomically(file.with_name("report.json"), json.dumps(report, indent=1, ensure_ascii=False) + "\n")
            _print(len(words), about_prompts, about_answers)
            if not pairs:
                raise UserError(
                    f"no answer of {about_answers.made} is left ({_reasons(about_answers)}):"
                    " choose another contrastive.answers, contrastive.judges or contrastive.drop"
                )
            write_atomically(file, _lines([pair | made_by for pair in pairs]))
            log.info("%d pairs: %s", len(pairs), file)
    except Timeout:
        raise UserError(f"another process is at work on {file.parent}: wait for it, or stop it") from None


def _check(config: RunConfig) -> None:
    """What is to be chosen; UserError that says how."""
    settings = config.contrastive
    choices = ", ".join(sorted(each.stem for each in (CONF / "generator").glob("*.yaml")))
    for role, node in {"prompts": settings.prompts, "answers": settings.answers}.items():
        if not (node or {}).get("_target_"):
            raise UserError(
                f"contrastive.{role} has no generator: choose one with generator@contrastive.{role}=..."
                f" (there are {choices}) and give its keys, such as contrastive.{role}.path or .model"
            )
    missing = [name for name in settings.judges if name not in config.judge]
    if missing or not settings.judges:
        raise UserError(
            f"contrastive.judges=[{','.join(settings.judges)}] has to name judges of judge=[{','.join(config.judge)}]:"
            " add them there"
        )
    if settings.judges == ["refusal"]:
        log.info("judge refusal reads opening words: refusals are dropped, and nothing judges whether an answer harms")


def _toxic_prompts(config: RunConfig) -> list[str]:
    """The first contrastive.toxic prompts of data.toxic_prompts, each once; UserError where there is none."""
    from tasft import parts
    from tasft.data.example import Rejected, prompt_of
    from tasft.source import read_rows

    source = parts.with_rows(config.data.toxic_prompts, "data.toxic_prompts")
    read = [prompt_of(row, source.fields) for row in read_rows(source, "data.toxic_prompts")]
    texts = list(dict.fromkeys(each for each in read if not isinstance(each, Rejected) and each.strip()))
    if not texts:
        raise UserError("data.toxic_prompts holds no prompt: give a source of toxic prompts")
    wanted = config.contrastive.toxic
    if len(texts) < wanted:
        log.info("contrastive.toxic=%d, but there are only %d toxic prompts: all are read", wanted, len(texts))
    return texts[:wanted]


def _words(config: RunConfig, toxic: Sequence[str]) -> "list[ToxicWord]":
    """The toxic words; the safe rows, as they stand in data.safe, are the everyday language."""
    from tasft import parts
    from tasft.data.example import Example, example
    from tasft.data.toxic_words import toxic_words
    from tasft.source import read_rows

    source = parts.with_rows(config.data.safe, "data.safe")
    examples = [example(row, source.fields, False) for row in read_rows(source, "data.safe")]
    safe = ["\n".join([*each.asked, each.response]) for each in examples if isinstance(each, Example)]
    settings = config.contrastive
    words = toxic_words(toxic, safe, settings.z, settings.common)
    log.info(
        "%d toxic words in %d toxic prompts, against %d safe rows: %s ...",
        len(words), len(toxic), len(safe), ", ".join(word.word for word in words[:10]),
    )  # fmt: skip
    return words


def _asked(
    file: Path, texts: Sequence[str], batch_size: int | None, ask: "Callable[[list[str]], list[Generated]]", title: str
) -> "dict[str, Generated]":
    """The reply to each text: what `file` holds, and for the rest what `ask` says, which goes there.

    The batches are the same however much is there already, so that a model on this machine says the same after a kill.
    What a server has failed to say is not kept, and is asked again by the next call; a model on this machine would only
    say the same again.
    """
    from tasft.generator.protocol import Generated
    from tasft.progress import Progress, quiet
    from tasft.result.rows import append_objects, read_appended

    replies = {str(row["text"]): Generated(row["reply"], row.get("reason")) for row in read_appended(file)}
    if batch_size is None:  # has its own memory and its own progress
        batches = [[text for text in texts if text not in replies]]
    else:
        batches = [list(texts[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
    todo = [batch for batch in batches if not replies.keys() >= set(batch)]
    failed: dict[str, str] = {}
    with Progress(len(batches), title, "batch", len(batches) - len(todo)) as bar:
        for batch in todo:
            with nullcontext() if batch_size is None else quiet():
                new = {text: reply for text, reply in zip(batch, ask(batch), strict=True) if text not in replies}
            lasting = {text: reply for text, reply in new.items() if reply.text is not None or batch_size is not None}
            append_objects(file, [
                {"text": text, "reply": reply.text} | ({"reason": reply.reason} if reply.text is None else {})
                for text, reply in lasting.items()
            ])  # fmt: skip
            replies |= new
            failed |= {text: str(reply.reason) for text, reply in new.items() if reply.text is None}
            bar.advance()
    if failed:
        text, why = next(iter(failed.items()))
        again = ": the same command asks again" if batch_size is None else ""
        log.info("%s: %d of %d failed, the first %r (%s)%s", title, len(failed), len(texts), text[:60], why, again)
    return {text: replies[text] for text in texts}


def _without_benchmarks(
    config: RunConfig, written: "list[Written]", benchmarks: Mapping[str, Any], counts: "Counts"
) -> "list[Written]":
    """The prompts that no benchmark of the config asks or nearly asks."""
    from tasft.data.overlap import overlaps

    asked = {name: [prompt.text for prompt in prompts] for name, prompts in benchmarks.items()}
    found = overlaps([each.prompt for each in written], asked, config.data.contamination.similarity)
    taken = {each.index for each in found}
    if taken:
        counts.dropped["benchmark prompt"] = len(taken)
        counts.kept -= len(taken)
    return [each for i, each in enumerate(written) if i not in taken]


def _scores(file: Path, judge: "Judge", answers: "Mapping[str, Generated]") -> "dict[str, ScoreRow]":
    """The judge's score of each answer, by prompt; those that are there are not judged again, unscored ones are."""
    from tasft.evaluate import judging
    from tasft.progress import Progress, quiet
    from tasft.result.rows import ResponseRow, ScoreRow, append_objects, read_appended

    known = {row["prompt_id"]: ScoreRow(**row) for row in read_appended(file)}
    rows = {
        prompt: ResponseRow(_digest(prompt, reply.text), prompt, reply.text.strip())
        for prompt, reply in answers.items()
        if reply.text is not None and reply.text.strip()
    }
    todo = [row for row in rows.values() if row.prompt_id not in known]
    with Progress(len(rows), "judging", "answer", len(rows) - len(todo)) as bar:
        for start in range(0, len(todo), JUDGED_AT_ONCE):
            with quiet():
                scores = judging.judge(judge, todo[start : start + JUDGED_AT_ONCE])
            append_objects(file, [dataclasses.asdict(score) for score in scores if score.score is not None])
            known |= {score.prompt_id: score for score in scores}
            bar.advance(len(scores))
    return {prompt: known[row.prompt_id] for prompt, row in rows.items()}


def _print(words: int, prompts: "Counts", answers: "Counts") -> None:
    """What became of the words, prompts and answers, as a table."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{words} toxic words", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("")
    for name in ("asked", "nothing", "made", "dropped", "kept"):
        table.add_column(name, justify="right")
    for name, counts in {"prompts": prompts, "answers": answers}.items():
        numbers = (counts.asked, counts.without.total(), counts.made, counts.dropped.total(), counts.kept)
        table.add_row(f"{name}", *map(str, numbers), style="bold")
        for why, count in counts.without.most_common():
            table.add_row(f"  {why}", "", str(count), "", "", "")
        for why, count in counts.dropped.most_common():
            table.add_row(f"  {why}", "", "", "", str(count), "")
    Console().print(table)


def _reasons(counts: "Counts") -> str:
    return ", ".join(f"{count} {why}" for why, count in (counts.without + counts.dropped).most_common())


def _digest(*parts: object) -> str:
    """Twelve hex digits of what decides a working file."""
    return sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _lines(rows: Sequence[Mapping[str, object]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main() -> int:
    """Run the command line; the exit code."""
    return entry(contrastive, "contrastive")


if __name__ == "__main__":
    sys.exit(main())
