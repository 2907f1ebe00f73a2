"""Prompts -> answers: greedy, in batches of like lengths."""

from collections.abc import Sequence
from typing import Any

import torch

from tasft.data.tokenize import prompt_ids
from tasft.progress import Progress
from tasft.prompt import Format


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    format: Format,
    max_new_tokens: int,
    batch_size: int,
    title: str = "generating",
) -> list[str]:
    """One answer for each prompt, in the prompts' order, without special tokens and outer white space.

    Padded on the left, longest prompts first, so that a batch that is too large fails at once.
    """
    encoded = [prompt_ids(tokenizer, format.prompt(prompt), format) for prompt in prompts]
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]))
    eos = model.generation_config.eos_token_id
    stops = {tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    answers = [""] * len(encoded)
    training = model.training
    model.eval()
    with Progress(len(order), title, "answer") as bar:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            width = len(encoded[chosen[0]])
            ids = torch.tensor([[pad] * (width - len(encoded[i])) + encoded[i] for i in chosen], device=model.device)
            lengths = torch.tensor([len(encoded[i]) for i in chosen], device=model.device)
            mask = torch.arange(width, device=model.device)[None] >= width - lengths[:, None]  # (b, width)
            out = model.generate(
                input_ids=ids,
                attention_mask=mask.long(),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                repetition_penalty=1.0,  # some models' generation_config.json has another
                eos_token_id=sorted(stops),
                pad_token_id=pad,
            )
            for i, tokens in zip(chosen, out[:, width:].tolist(), strict=True):
                answers[i] = tokenizer.decode(_until(tokens, stops), skip_special_tokens=True).strip()
            bar.advance(len(chosen))
    model.train(training)
    return answers


def _until(tokens: list[int], stops: set[int]) -> list[int]:
    """The tokens before the first stop: padding may be a stop token too."""
    return next((tokens[:i] for i, token in enumerate(tokens) if token in stops), tokens)
