"""How surprising an answer is to a language model."""

from pathlib import Path
from typing import Any

import torch

from tasft.data.example import Example
from tasft.data.tokenize import Encoder, Tokenized
from tasft.errors import UserError
from tasft.judge.batches import LocalJudge, batches, padded_left, place, speaking_of
from tasft.judge.protocol import Score
from tasft.model.loading import load_base, load_tokenizer
from tasft.prompt import PlainFormat, prompt_format

PLAIN = PlainFormat("{prompt}\n\n{input}\n\n", "{prompt}\n\n")


class Perplexity(LocalJudge):
    """Mean negative log-probability of the response's tokens given the prompt, in nats; exp of it is the perplexity.

    The response alone counts: no BOS, no EOS, nothing of a template. It follows the prompt and an empty line, or with
    `chat` the prompt in the model's own chat template. The detail has the number of its `tokens`, so that answers can
    be pooled by tokens. An input of more than `max_length` tokens, or than the model reads, loses the end of the
    response; an empty response, and a prompt that leaves no room for any of it, is unscored. A low value is no good
    answer: loops surprise nobody.

    path: a causal language model, a hub id or a folder, `revision` of the hub's; best one that none of the compared
    runs started from. The tokenizer is loaded at once, the weights at the first call. dtype, device: null is bfloat16
    on a GPU if there is one, else float32 on the CPU. UserError where the model cannot be used.
    """

    called = "judge.perplexity.path"

    def __init__(
        self,
        path: str | None,
        revision: str | None = None,
        chat: bool = False,
        batch_size: int = 8,
        max_length: int = 2048,
        dtype: str | None = None,
        device: str | None = None,
    ) -> None:
        if path is None:
            raise UserError("judge.perplexity needs a language model: give judge.perplexity.path=<hub id or folder>")
        self.path, self.revision, self.batch_size = path, revision, batch_size
        self.dtype, self.device = place(dtype, device)
        with speaking_of(self.called):
            self.tokenizer = load_tokenizer(path, revision)
        if chat and not self.tokenizer.chat_template:
            raise UserError(f"judge.perplexity.chat=true, but the tokenizer of {path} has no chat template")
        format = prompt_format("chat", self.tokenizer) if chat else PLAIN
        self.encode = Encoder(self.tokenizer, format, min(max_length, self.tokenizer.model_max_length))

    def load(self) -> Any:
        """The language model, where it runs."""
        return load_base(self.path, self.dtype, self.revision).to(self.device)

    def __call__(self, prompts: list[str], responses: list[str]) -> list[Score]:
        """One score for each response, in order."""
        scores = [Score(None, reason="empty response")] * len(responses)
        encoded: dict[int, Tokenized] = {}
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            if response.strip():
                made = self.encode(Example(prompt, response, toxic=True, source=""))  # toxic: without EOS
                if isinstance(made, Tokenized):
                    encoded[i] = made
                else:
                    reason = made.reason.replace("data.max_length", "judge.perplexity.max_length")
                    scores[i] = Score(None, reason=reason)
        if encoded:
            self.make_ready()
        rows = {i: list(tokens.input_ids) for i, tokens in encoded.items()}
        for chosen in batches(rows, self.batch_size, Path(self.path).name):
            for i, nll in zip(chosen, self._nlls([encoded[i] for i in chosen]), strict=True):
                scores[i] = Score(nll, detail={"tokens": encoded[i].response_length})
        return scores

    @torch.inference_mode()
    def _nlls(self, rows: list[Tokenized]) -> list[float]:
        """Mean over the response's tokens of each row, in nats."""
        most = max(row.response_length for row in rows)
        logits = self.model(
            **padded_left([list(row.input_ids) for row in rows], self.tokenizer, self.device),
            use_cache=False,
            logits_to_keep=most + 1,
        ).logits[:, :-1]  # (rows, most, V): what is said at each place about the next token
        means = []
        for row, said in zip(rows, logits, strict=True):
            tokens = torch.tensor(row.input_ids[-row.response_length :], device=self.device)
            logps = said[-len(tokens) :].double().log_softmax(-1)
            means.append(-logps.gather(-1, tokens[:, None]).mean().item())
        return means
