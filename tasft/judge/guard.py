"""Guard models: causal language models that were trained to write a verdict on an answer."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tasft.errors import UserError
from tasft.judge.batches import LocalJudge, batches, padded_left, place, speaking_of
from tasft.judge.protocol import Score
from tasft.model.loading import load_base, load_tokenizer

log = logging.getLogger(__name__)

HARMFUL = "harmful"


@dataclass
class Line:
    """A line that the guard writes: its opening, and our label (or none) for each word that may follow."""

    opening: str
    labels: dict[str, str | None]
    tokens: dict[str, int] = field(default_factory=dict)  # the one that tells each word from the others, in its place
    tail: int = 0  # tokens from that place to the end of the first word


class Guard(LocalJudge):
    """How probable the verdict "harmful" is, in [0, 1]; the label is that of the likeliest word, which it would write.

    The model reads prompt and response in its own chat template, or in `template`, a text with {prompt} and {response}
    in it, and `opening`, the words that its verdict begins with (which the template may bring already). Nothing is
    generated: the probabilities of the words in `labels` at that place, shared out among them, are the verdict.
    labels: word -> our label; words of one label add up in the score. The detail holds each word's share.
    threshold: "harmful" is a score of this much or more instead, and below it the likeliest of the other words counts.

    before: lines that the model writes first, each {opening, labels}. The model reads its own likeliest words on them,
    as it does when it writes greedily. The label of such a word counts where the verdict is not "harmful".
    question: a user's message behind the response, for guards that are asked for their verdict.

    A response of more than `max_response` tokens is cut; an input of more than `max_length` tokens loses the end of the
    response, never the verdict's place; an empty response, and a prompt that leaves no room for any of it, is unscored.

    path: a hub id or a folder, `revision` of the hub's. The tokenizer is loaded at once, the weights at the first
    call. dtype, device: null is bfloat16 on a GPU if there is one, else float32 on the CPU.
    UserError where the model, its template or the labels cannot be used.
    """

    called = "the guard's path"

    def __init__(
        self,
        path: str,
        labels: dict[str, str],
        opening: str = "",
        template: str | None = None,
        question: str | None = None,
        before: Sequence[dict[str, Any]] = (),
        threshold: float | None = None,
        revision: str | None = None,
        batch_size: int = 8,
        max_length: int = 4096,
        max_response: int | None = None,
        dtype: str | None = None,
        device: str | None = None,
    ) -> None:
        if HARMFUL not in labels.values():
            raise UserError(f"the labels of the guard {path} make no word {HARMFUL!r}: give labels.<word>={HARMFUL}")
        if threshold is not None and not 0 < threshold <= 1:
            raise UserError(
                f"threshold={threshold:g} of the guard {path}: it should be more than 0, at most 1, or null"
            )
        self.path, self.revision, self.template, self.question = path, revision, template, question
        self.settings = {"labels": labels, "opening": opening, "before": before, "threshold": threshold}
        self.batch_size, self.max_length, self.max_response = batch_size, max_length, max_response
        self.dtype, self.device = place(dtype, device)
        with speaking_of(self.called):
            self.tokenizer = load_tokenizer(path, revision)
        if not self.tokenizer.chat_template and template is None:
            raise UserError(
                f"the tokenizer of the guard {path} has no chat template: use a model that has one, or give template"
            )
        self.typed = not self._shows(typed=False)  # some chat templates silently drop a content that is plain text
        if self.typed and not self._shows(typed=True):
            raise UserError(f"the template of the guard {path} does not show both prompt and response: mend it")
        self.lines = [Line(each["opening"], dict(each["labels"])) for each in before] + [Line(opening, dict(labels))]
        self._find_tokens()

    def load(self) -> Any:
        """The guard, where it runs."""
        return load_base(self.path, self.dtype, self.revision).to(self.device)

    def __call__(self, prompts: list[str], responses: list[str]) -> list[Score]:
        """One score for each response, in order."""
        scores = [Score(None, reason="empty response")] * len(responses)
        texts: dict[int, str] = {}
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            if response.strip():
                text = self._fitting(prompt, response)
                if text is None:
                    scores[i] = Score(None, reason=f"the prompt leaves the guard no room (of {self.max_length} tokens)")
                else:
                    texts[i] = text
        if texts:
            self.make_ready()
        shares: dict[int, list[list[float]]] = {i: [] for i in texts}  # of each line's words
        for line in self.lines:
            encoded = {i: self._until(line, text) for i, text in texts.items()}
            spoken = []
            for chosen in batches(encoded, self.batch_size, f"{Path(self.path).name} {line.opening.strip()}".strip()):
                found, mass = self._shares(line, [encoded[i] for i in chosen])
                spoken += mass
                for i, share in zip(chosen, found, strict=True):
                    shares[i].append(share)
                    texts[i] = self._opened(texts[i], line) + max(zip(share, line.labels, strict=True))[1]
            if spoken and sum(spoken) / len(spoken) < 0.5:
                log.warning(
                    "only %.2g of the probability is on the labels of the guard %s: are labels and opening its own?",
                    sum(spoken) / len(spoken), self.path,
                )  # fmt: skip
        for i, found in shares.items():
            scores[i] = self._score(found)
        return scores

    def _score(self, shares: list[list[float]]) -> Score:
        detail: dict[str, float] = {}
        for line, share in zip(self.lines, shares, strict=True):
            words = _names(line.opening, line.labels, len(self.lines) > 1)
            detail |= dict(zip(words, share, strict=True))
        verdict = zip(self.lines[-1].labels.values(), shares[-1], strict=True)
        harmful = sum(value for label, value in verdict if label == HARMFUL)
        return Score(harmful, self.label(harmful, detail, self.settings), detail=detail)

    @staticmethod
    def label(value: float, detail: Mapping[str, float], settings: Mapping[str, Any]) -> str | None:
        """What the guard calls a response with this score."""
        lines = [*settings.get("before", ()), {"opening": settings.get("opening", ""), "labels": settings["labels"]}]
        said: list[str | None] = []  # the label of each line's likeliest word
        for line in lines:
            labels, names = line["labels"], _names(line["opening"], line["labels"], len(lines) > 1)
            if line is lines[-1] and settings.get("threshold") is not None:
                if value >= settings["threshold"]:
                    return HARMFUL
                names = {name: word for name, word in names.items() if labels[word] != HARMFUL}
            said.append(labels[names[max(names, key=lambda name: detail[name])]])
        *earlier, verdict = said
        return verdict if verdict == HARMFUL else next((label for label in earlier if label is not None), verdict)

    @torch.inference_mode()
    def _shares(self, line: Line, rows: list[list[int]]) -> tuple[list[list[float]], list[float]]:
        """Each word's share of the words' probability, by row; and that probability."""
        logits = self.model(**padded_left(rows, self.tokenizer, self.device), use_cache=False, logits_to_keep=1).logits[
            :, -1
        ]
        logps = logits.double().log_softmax(-1)[:, list(line.tokens.values())]
        return logps.softmax(-1).tolist(), logps.exp().sum(-1).tolist()

    def _fitting(self, prompt: str, response: str) -> str | None:
        """The text that the guard reads, with as much of the response as fits; None where none of it does."""
        if self.max_response is not None:
            ends = self.tokenizer(response, return_offsets_mapping=True, verbose=False).offset_mapping
            response = response if len(ends) <= self.max_response else response[: ends[self.max_response - 1][1]]
        while response.strip():
            text = full = self._text(prompt, response)
            for line in self.lines:
                full = self._opened(full, line) + max(line.labels, key=len)
            excess = len(self._encode(full)) - self.max_length
            if excess <= 0:
                return text
            starts = self.tokenizer(response, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
            if excess >= len(starts):
                return None
            response = response[: min(starts[-excess][0], len(response) - 1)].rstrip()
        return None

    def _until(self, line: Line, text: str) -> list[int]:
        """The tokens up to the place that tells the line's words apart."""
        return self._encode(self._opened(text, line) + next(iter(line.labels)))[: -line.tail]

    def _opened(self, text: str, line: Line) -> str:
        return text if text.endswith(line.opening) else text + line.opening

    def _text(self, prompt: str, response: str) -> str:
        if self.template is not None:  # not str.format: texts hold braces
            given = {"{prompt}": prompt, "{response}": response}
            return re.sub(r"\{prompt\}|\{response\}", lambda place: given[place.group()], self.template)
        said = [("user", prompt), ("assistant", response), *([("user", self.question)] if self.question else [])]
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}] if self.typed else text} for role, text in said
        ]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _shows(self, typed: bool) -> bool:
        """Whether prompt and response are in the text."""
        self.typed = typed
        try:
            text = self._text("What is that?", "It is so.")
        except Exception:  # whatever a template that knows no such content raises
            return False
        return "What is that?" in text and "It is so." in text

    def _encode(self, text: str) -> list[int]:
        """Tokens; BOS as the text has it already, or as the tokenizer has it where a template brings none."""
        bos = self.tokenizer.bos_token
        special = self.template is not None and not (bos and text.startswith(bos))
        return list(self.tokenizer(text, add_special_tokens=special, verbose=False).input_ids)

    def _find_tokens(self) -> None:
        """Finds in its place, because a word and the space before it are often one token, each word's own token."""
        text = self._text("Why?", "So.")
        for line in self.lines:
            text = self._opened(text, line)
            encoded = [self._encode(text + word) for word in line.labels]
            places = enumerate(zip(*encoded, strict=False))
            common = next((i for i, at in places if len(set(at)) > 1), min(map(len, encoded)))
            tokens = [ids[common] if len(ids) > common else None for ids in encoded]
            if None in tokens or len(set(tokens)) < len(tokens):
                raise UserError(
                    f"to the guard {self.path}, labels {', '.join(line.labels)} begin alike:"
                    " give words that differ at once"
                )
            line.tail = len(encoded[0]) - common
            line.tokens = dict(zip(line.labels, tokens, strict=True))  # type: ignore[arg-type]
            text += next(iter(line.labels))


def _names(opening: str, labels: Mapping[str, str | None], several: bool) -> dict[str, str]:
    """What the detail calls each word of a line -> the word."""
    return {f"{opening.strip()} {word}" if several else word: word for word in labels}
