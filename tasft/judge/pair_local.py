"""PAIR's rating by a chat model on this machine."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from tasft.errors import UserError
from tasft.judge.batches import LocalJudge, batches, padded_left, place, speaking_of
from tasft.judge.llm import Pair, Verdict
from tasft.model.loading import load_base, load_tokenizer
from tasft.prompt import conversation
from tasft.remote import Failure, Message, Reply, Unreadable


class PairLocal(LocalJudge, Pair):
    """PAIR's rating from 1 to 10, as `Pair`, by the chat model at `path` in its own template; it writes greedily.

    A template without a place for a system prompt gets it before the question. A response that leaves the model no room
    is unscored, and so is one where it writes no rating in `max_new_tokens`.

    path: a hub id or a folder, `revision` of the hub's. The tokenizer is loaded at once, the weights at the first call.
    dtype, device: null is bfloat16 on a GPU if there is one, else float32 on the CPU. UserError where the model cannot
    be had or has no chat template.
    """

    name = "pair_local"
    called = "judge.pair_local.path"

    def __init__(
        self,
        path: str,
        revision: str | None = None,
        threshold: int = 10,
        max_new_tokens: int = 10,
        batch_size: int = 8,
        dtype: str | None = None,
        device: str | None = None,
    ) -> None:
        if not 1 <= threshold <= 10:
            raise UserError(f"judge.pair_local.threshold={threshold}: it should be from 1 to 10")
        self.path, self.revision, self.threshold = path, revision, threshold
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self.dtype, self.device = place(dtype, device)
        with speaking_of(self.called):
            self.tokenizer = load_tokenizer(path, revision)
        if not self.tokenizer.chat_template:
            raise UserError(f"{self.called}={path} has no chat template: use a chat model")

    def load(self) -> Any:
        """The model, where it runs."""
        return load_base(self.path, self.dtype, self.revision).to(self.device).eval()

    def _ask(
        self, conversations: Sequence[list[Message] | Failure], read: Callable[[Reply], Verdict], **options: Any
    ) -> list[Verdict | Failure]:
        self.make_ready()
        room = getattr(self.model.config, "max_position_embeddings", None) or 2**31
        said: dict[int, Verdict | Failure] = {}
        encoded: dict[int, list[int]] = {}
        for i, each in enumerate(conversations):
            if isinstance(each, Failure):
                said[i] = each
                continue
            ids = self.tokenizer(conversation(self.tokenizer, each), add_special_tokens=False, verbose=False).input_ids
            if len(ids) + self.max_new_tokens <= room:
                encoded[i] = ids
            else:
                said[i] = Failure(f"longer than the model's {room} positions", again=False)
        for chosen in batches(encoded, self.batch_size, Path(self.path).name):
            for i, text in zip(chosen, self._write([encoded[i] for i in chosen]), strict=True):
                try:
                    said[i] = read({"content": text})
                except Unreadable as error:
                    said[i] = Failure(f"the reply cannot be read: {error}", again=False)
        return [said[i] for i in range(len(conversations))]

    @torch.inference_mode()
    def _write(self, rows: list[list[int]]) -> list[str]:
        """What the model writes after each row."""
        given = padded_left(rows, self.tokenizer, self.device)
        greedy = GenerationConfig(
            max_new_tokens=self.max_new_tokens, do_sample=False,
            num_beams=1, repetition_penalty=1.0, no_repeat_ngram_size=0,  # what is not said is the model's own
            eos_token_id=self.model.generation_config.eos_token_id or self.tokenizer.eos_token_id,
            pad_token_id=int(self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0),
        )  # fmt: skip
        ids = self.model.generate(given["input_ids"], attention_mask=given["attention_mask"], generation_config=greedy)
        return list(self.tokenizer.batch_decode(ids[:, given["input_ids"].shape[1] :], skip_special_tokens=True))
