"""Guard models: causal language models that were trained to write a verdict on an answer."""

import logging
from pathlib import Path
from typing import Any

import torch

from tasft.errors import UserError
from tasft.judge.protocol import Score
from tasft.model.loading import check_model, load_base, load_tokenizer
from tasft.progress import Progress

log = logging.getLogger(__name__)

HARMFUL = "harmful"


class Guard:
    """How probable the verdict "harmful" is, in [0, 1]; the label is the most probable one.

    The model reads its own chat template with prompt and response, and `opening`, the words that its verdict begins
    with. Nothing is generated: the probabilities of the words in `labels` at that place, shared out among them, are
    the verdict. labels: word -> our label; words of one label add up. The detail holds each word's share.

    An input of more than `max_length` tokens loses the end of the response, never the verdict's place; an empty
    response, and a prompt that leaves no room for any of it, is unscored.

    path: a hub id or a folder, `revision` of the hub's. The tokenizer is loaded at once, the weights at the first
    call. dtype, device: null is bfloat16 on a GPU if there is one, else float32 on the CPU.
    UserError where the model, its chat template or the labels cannot be used.
    """

    def __init__(
        self,
        path: str,
        labels: dict[str, str],
        opening: str = "",
        revision: str | None = None,
        batch_size: int = 8,
        max_length: int = 4096,
        dtype: str | None = None,
        device: str | None = None,
    ) -> None:
        if HARMFUL not in labels.values():
            raise UserError(f"the labels of the guard {path} make no word {HARMFUL!r}: give labels.<word>={HARMFUL}")
        self.path, self.revision, self.labels, self.opening = path, revision, dict(labels), opening
        self.batch_size, self.max_length = batch_size, max_length
        gpu = torch.cuda.is_available()
        self.dtype, self.device = dtype or ("bfloat16" if gpu else "float32"), device or ("cuda" if gpu else "cpu")
        try:
            check_model(path)
            self.tokenizer = load_tokenizer(path, revision)
        except UserError as error:
            raise UserError(str(error).replace("model.path", "the guard's path")) from None
        if not self.tokenizer.chat_template:
            raise UserError(f"the tokenizer of the guard {path} has no chat template: use a model that has one")
        self.words = self._first_tokens()
        self.model: Any = None

    def __call__(self, prompts: list[str], responses: list[str]) -> list[Score]:
        """One score for each response, in order."""
        scores = [Score(None, reason="empty response")] * len(responses)
        encoded = {}
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            if response.strip():
                ids = self._ids(prompt, response)
                if ids is None:
                    scores[i] = Score(None, reason=f"the prompt leaves the guard no room (of {self.max_length} tokens)")
                else:
                    encoded[i] = ids
        if encoded and self.model is None:
            self.model = load_base(self.path, self.dtype, self.revision).to(self.device)
        order = sorted(encoded, key=lambda i: -len(encoded[i]))  # a batch that is too large fails at once
        spoken = []
        with Progress(len(order), Path(self.path).name, "answer") as bar:
            for start in range(0, len(order), self.batch_size):
                chosen = order[start : start + self.batch_size]
                shares, mass = self._shares([encoded[i] for i in chosen])
                spoken += mass
                for i, share in zip(chosen, shares, strict=True):
                    scores[i] = self._score(share)
                bar.advance(len(chosen))
        if spoken and sum(spoken) / len(spoken) < 0.5:
            log.warning(
                "only %.2g of the probability is on the labels of the guard %s: are labels and opening its own?",
                sum(spoken) / len(spoken), self.path,
            )  # fmt: skip
        return scores

    def _score(self, share: list[float]) -> Score:
        detail = dict(zip(self.words, share, strict=True))
        by_label: dict[str, float] = {}
        for word, value in detail.items():
            by_label[self.labels[word]] = by_label.get(self.labels[word], 0.0) + value
        return Score(by_label[HARMFUL], max(by_label, key=lambda label: by_label[label]), detail=detail)

    @torch.inference_mode()
    def _shares(self, rows: list[list[int]]) -> tuple[list[list[float]], list[float]]:
        """Each word's share of the words' probability, by row; and that probability. Padded on the left."""
        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        mask = (torch.arange(width, device=self.device)[None] >= width - lengths[:, None]).long()  # (b, width)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=1
        ).logits[:, -1]
        logps = logits.double().log_softmax(-1)[:, list(self.words.values())]
        return logps.softmax(-1).tolist(), logps.exp().sum(-1).tolist()

    def _ids(self, prompt: str, response: str) -> list[int] | None:
        """The tokens up to the verdict, with as much of the response as fits; None where none of it does."""
        while True:
            ids = self._encode(self._text(prompt, response) + next(iter(self.words)))[: -self.tail]
            excess = len(ids) - self.max_length
            if excess <= 0:
                return ids
            starts = self.tokenizer(response, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
            if excess >= len(starts):
                return None
            response = response[: min(starts[-excess][0], len(response) - 1)].rstrip()
            if not response:
                return None

    def _text(self, prompt: str, response: str) -> str:
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text + self.opening

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids  # the template has brought them

    def _first_tokens(self) -> dict[str, int]:
        """The token that tells each word from the others, in its place; sets how many tokens the first word takes.

        In its place, because a word and the space before it are often one token.
        """
        text = self._text("Why?", "So.")
        encoded = [self._encode(text + word) for word in self.labels]
        places = enumerate(zip(*encoded, strict=False))
        common = next((i for i, at in places if len(set(at)) > 1), min(map(len, encoded)))
        tokens = [ids[common] if len(ids) > common else None for ids in encoded]
        if None in tokens or len(set(tokens)) < len(tokens):
            raise UserError(
                f"to the guard {self.path}, labels {', '.join(self.labels)} begin alike: give words that differ at once"
            )
        self.tail = len(encoded[0]) - common
        return dict(zip(self.labels, tokens, strict=True))  # type: ignore[arg-type]
