"""Prompts -> answers: greedy, by beams or drawn, in batches of like lengths."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from tasft.data.tokenize import answer_ids, prompt_ids
from tasft.progress import Progress
from tasft.prompt import Format
from tasft.result.batches import Batches

GREEDY = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}


@dataclass(frozen=True)
class Answer:
    """An answer without special tokens and outer white space; `truncated` where the limit on its length ended it."""

    text: str
    truncated: bool


@dataclass(frozen=True)
class Sampling:
    """Words are drawn: those of each prompt by its own seed, whatever prompts are beside it."""

    temperature: float
    top_p: float  # of the likeliest words, as many as have this probability together
    seeds: Sequence[str]  # one for each prompt


@dataclass(frozen=True)
class Begun:
    """What the model is given: the tokens of a prompt, and after them those that its answer is made to begin with."""

    prompt: list[int]
    answer: list[int]

    @property
    def ids(self) -> list[int]:
        """All tokens."""
        return self.prompt + self.answer


@torch.no_grad()  # not inference_mode: what a model keeps from here may be needed in a later training step
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    format: Format,
    max_new_tokens: int,
    batch_size: int,
    title: str = "generating",
    options: Mapping[str, Any] | None = None,
    prefix: Sequence[str | Sequence[int]] | None = None,
    kept: Batches[Answer] | None = None,
    sampling: Sampling | None = None,
    end: str = "",
) -> list[Answer]:
    """One answer for each prompt, in the prompts' order: the likeliest words, or what `sampling` draws.

    options: of model.generate, instead of greedy: {"num_beams": 4}.
    prefix: for each prompt how its answer is made to begin, as text or as tokens (of `answer_ids`, for the first n of
    a given answer), nothing where empty; the text has the token boundaries of a training row, and no white space at
    its ends. An answer holds its beginning, which does not count in `max_new_tokens`.
    kept: where finished batches go; those that are there are not made again. The same prompts make the same batches.
    end: an answer is over with the first token that holds this text.

    Padded on the left, longest prompts first, so that a batch that is too large fails at once. The model's modules are
    afterwards in the mode that they were in.
    """
    begun = begin(tokenizer, prompts, format, prefix)
    order = sorted(range(len(begun)), key=lambda i: -len(begun[i].ids))
    options = GREEDY | dict(options or {})
    answers: list[Answer] = [Answer("", False)] * len(begun)
    ends = {token for text, token in tokenizer.get_vocab().items() if end in text} if end else set()
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with Progress(len(order), title, "answer") as bar:
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                batch = [begun[i] for i in chosen]
                drawn = None if sampling is None else replace(sampling, seeds=[sampling.seeds[i] for i in chosen])
                words = [[each.prompt, each.answer] for each in batch]
                deciding = [max_new_tokens, options, words, end, None if drawn is None else asdict(drawn)]
                made = kept.get(*deciding) if kept is not None else None
                if made is None:
                    made = _batch(model, tokenizer, batch, max_new_tokens, options, drawn, ends)
                    if kept is not None:
                        kept.add(made, *deciding)
                for i, answer in zip(chosen, made, strict=True):
                    answers[i] = answer
                bar.advance(len(chosen))
    finally:
        for module in training:
            module.training = True
    return answers


def begin(
    tokenizer: Any, prompts: Sequence[str], format: Format, prefix: Sequence[str | Sequence[int]] | None = None
) -> list[Begun]:
    """The tokens of each prompt and of what its answer begins with, see `generate`.

    ValueError where there is another number of beginnings than of prompts.
    """
    made = []
    for prompt, beginning in zip(prompts, [""] * len(prompts) if prefix is None else prefix, strict=True):
        if isinstance(beginning, str) and beginning.strip():
            made.append(Begun(*answer_ids(tokenizer, prompt, beginning.strip(), format)))
        else:
            tokens = [] if isinstance(beginning, str) else list(beginning)
            made.append(Begun(prompt_ids(tokenizer, format.prompt(prompt), format), tokens))
    return made


def _batch(
    model: Any,
    tokenizer: Any,
    batch: Sequence[Begun],
    max_new_tokens: int,
    options: Mapping[str, Any],
    sampling: Sampling | None,
    ends: set[int],
) -> list[Answer]:
    """The answers of one batch, the longest first; `ends` are tokens that an answer ends with.

    Answers end at different lengths: once half of the rows have ended, the others go on without them. Beams do not.
    """
    eos = model.generation_config.eos_token_id
    stops = {tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos]), *ends} - {None}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    width = max(len(each.ids) for each in batch)
    padding = [width - len(each.ids) for each in batch]
    ids = torch.tensor([[pad] * n + each.ids for n, each in zip(padding, batch, strict=True)], device=model.device)
    mask = torch.tensor([[0] * n + [1] * (width - n) for n in padding], device=model.device)
    said: list[list[int]] = [[] for _ in batch]
    numbers = [random.Random(seed) for seed in sampling.seeds] if sampling is not None else []
    rows, cache = list(range(len(batch))), None
    while rows:
        drawing = [] if sampling is None else [_Drawing(sampling, [numbers[row] for row in rows])]
        several = len(rows) > 1 and options["num_beams"] == 1
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=width + max_new_tokens - ids.shape[1],
            repetition_penalty=1.0,  # some models' generation_config.json has another
            no_repeat_ngram_size=0,
            **options,
            eos_token_id=sorted(stops),
            pad_token_id=pad,
            stopping_criteria=StoppingCriteriaList([_HalfEnded(stops)] if several else []),
            logits_processor=LogitsProcessorList(drawing),
            return_dict_in_generate=True,
        )
        new = out.sequences[:, width:].tolist()
        for row, tokens in zip(rows, new, strict=True):
            said[row] = _until(tokens, stops, ends)
        left = [i for i, tokens in enumerate(new) if len(tokens) < max_new_tokens and stops.isdisjoint(tokens)]
        if not several or not left:
            break
        rows, cache = [rows[i] for i in left], _only(getattr(out, "past_key_values", None), left)
        ids = out.sequences[left]
        mask = torch.nn.functional.pad(mask[left], (0, ids.shape[1] - mask.shape[1]), value=1)
    texts = [
        tokenizer.decode(each.answer + tokens, skip_special_tokens=True)
        for each, tokens in zip(batch, said, strict=True)
    ]
    return [Answer(text.strip(), len(tokens) == max_new_tokens) for text, tokens in zip(texts, said, strict=True)]


class _Drawing(LogitsProcessor):
    """Leaves each row the one token that the next of its own random numbers chooses."""

    def __init__(self, sampling: Sampling, numbers: Sequence[random.Random]) -> None:
        self.sampling, self.numbers = sampling, numbers

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        shares, tokens = (scores.double() / self.sampling.temperature).softmax(-1).sort(stable=True, descending=True)
        likelier = shares.cumsum(-1) - shares  # (rows, vocabulary), the probability of those before each token
        shares = shares.masked_fill(likelier >= self.sampling.top_p, 0)
        drawn = torch.tensor([[each.random()] for each in self.numbers], dtype=shares.dtype, device=scores.device)
        place = (shares.cumsum(-1) <= drawn * shares.sum(-1, keepdim=True)).sum(-1, keepdim=True)
        place = torch.minimum(place, (shares > 0).sum(-1, keepdim=True) - 1)  # rounding must not pass the last one
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens.gather(-1, place), 0.0)


class _HalfEnded(StoppingCriteria):
    """True of all rows of a batch once at least half of them have ended."""

    def __init__(self, stops: set[int]) -> None:
        self.stops = sorted(stops)
        self.ended: torch.Tensor | None = None  # (rows,)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        now = torch.isin(input_ids[:, -1], torch.tensor(self.stops, device=input_ids.device))
        self.ended = now if self.ended is None else self.ended | now
        return (2 * self.ended.sum() >= len(now)).expand(len(now))


def _only(cache: Any, rows: list[int]) -> Any:
    """What a model keeps of some rows of a batch; None where it keeps it in another way: then it reads them again."""
    if not isinstance(cache, DynamicCache) or {type(layer) for layer in cache.layers} - {
        DynamicLayer, DynamicSlidingWindowLayer
    }:  # fmt: skip
        return None
    cache.batch_select_indices(torch.tensor(rows, device=cache.layers[0].keys.device))
    return cache


def _until(tokens: list[int], stops: set[int], ends: set[int]) -> list[int]:
    """The tokens before the first stop, and with it if it is one of `ends`: padding may be a stop token too."""
    return next((tokens[: i + (token in ends)] for i, token in enumerate(tokens) if token in stops), tokens)
