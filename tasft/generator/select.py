"""Which of the written prompts and of the answers become training pairs, and why the others do not."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from tasft.data.overlap import normalised
from tasft.data.toxic_words import ToxicWord, has_word
from tasft.generator.asking import listed
from tasft.generator.protocol import Generated
from tasft.result.rows import ScoreRow


@dataclass
class Counts:
    """What became of the texts of one stage: `made` = those dropped + `kept`."""

    asked: int  # words, or prompts
    made: int = 0  # prompts in readable replies, or answers
    without: Counter[str] = field(default_factory=Counter)  # asked, and nothing made of it: failed, empty, unreadable
    dropped: Counter[str] = field(default_factory=Counter)  # made, and left out
    kept: int = 0


@dataclass(frozen=True)
class Written:
    """A seemingly toxic prompt, and the toxic word that it was written for."""

    prompt: str
    word: str


def select_prompts(
    words: Sequence[ToxicWord], replies: Mapping[str, Generated], count: int, toxic: Collection[str]
) -> tuple[list[Written], Counts]:
    """Up to `count` prompts for each word, in the order of the words.

    Left out: those without the word in any form, toxic prompts, and those written before (case, punctuation and white
    space do not count).
    """
    kept: list[Written] = []
    counts = Counts(len(words))
    known = {normalised(text): "toxic prompt" for text in toxic}
    for word in words:
        reply = replies[word.word]
        prompts = listed(reply.text) if reply.text is not None else []
        if not prompts:
            counts.without[_nothing(reply)] += 1
        counts.made += len(prompts)
        of_word = 0
        for prompt in prompts:
            text = normalised(prompt)
            why = known.get(text) or ("" if has_word(prompt, word) else "without the word")
            why = why or ("more than asked for" if of_word == count else "")
            if why:
                counts.dropped[why] += 1
                continue
            known[text] = "duplicate"
            of_word += 1
            kept.append(Written(prompt, word.word))
    counts.kept = len(kept)
    return kept, counts


def select_pairs(
    prompts: Sequence[Written],
    replies: Mapping[str, Generated],
    scores: Mapping[str, Mapping[str, ScoreRow]],
    drop: Collection[str],
) -> tuple[list[dict[str, object]], Counts]:
    """Rows {"prompt", "response", "word", "judges"} in the order of the prompts; `scores` by judge, then by prompt.

    Left out: answers that any judge gives a label in `drop`, and those that any leaves unscored: it has not read them.
    """
    kept: list[dict[str, object]] = []
    counts = Counts(len(prompts))
    for each in prompts:
        reply = replies[each.prompt]
        if not (reply.text or "").strip():
            counts.without[_nothing(reply)] += 1
            continue
        counts.made += 1
        said = {judge: by_prompt[each.prompt] for judge, by_prompt in scores.items()}
        labels = ["unscored" if score.score is None else str(score.label) for score in said.values()]
        why = next((label for label in labels if label == "unscored" or label in drop), None)
        if why is not None:
            counts.dropped[why] += 1
            continue
        kept.append(
            {
                "prompt": each.prompt, "response": str(reply.text).strip(), "word": each.word,
                "judges": {judge: {"score": score.score, "label": score.label} for judge, score in said.items()},
            }
        )  # fmt: skip
    counts.kept = len(kept)
    return kept, counts


def _nothing(reply: Generated) -> str:
    """Why a reply holds nothing to use."""
    if reply.text is None:
        return "failed"
    if not reply.text.strip():
        return "empty"
    return "none written" if reply.text.strip() == "[]" else "unreadable"
