"""What judges that are models on this machine have in common: where they run, and their inputs in batches."""

import gc
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tasft import hub
from tasft.errors import UserError
from tasft.model.loading import model_fingerprint
from tasft.progress import Progress


class LocalJudge(ABC):
    """A judge that is a model on this machine, loaded for its first answers and in memory until `let_go`."""

    called: str  # its path, in messages
    path: str
    revision: str | None
    model: Any = None
    weights: str | None = None  # which have judged, once any have: the hub's commit, or a fingerprint of the folder

    @abstractmethod
    def load(self) -> Any:
        """The model, where it runs."""

    def make_ready(self) -> None:
        """Load the weights, unless they are there; UserError where they cannot be had."""
        if self.model is None:
            with speaking_of(self.called):
                self.model = self.load()
            self.weights = hub.commit(self.path, self.revision) or model_fingerprint(self.path)

    def let_go(self) -> None:
        """Free the memory of the weights; the next answers load them again."""
        self.model = None
        gc.collect()
        torch.cuda.empty_cache()


def place(dtype: str | None, device: str | None) -> tuple[str, str]:
    """Type of the weights and device; where None is given, bfloat16 on a GPU if there is one, else float32, CPU."""
    gpu = torch.cuda.is_available()
    return dtype or ("bfloat16" if gpu else "float32"), device or ("cuda" if gpu else "cpu")


@contextmanager
def speaking_of(key: str) -> Iterator[None]:
    """Mistakes in the model's path name `key`, not the path of the run's own model."""
    try:
        yield
    except UserError as error:
        raise type(error)(str(error).replace("model.path", key)) from None


def batches(rows: Mapping[int, list[int]], size: int, title: str) -> Iterator[list[int]]:
    """The keys of `rows`, `size` at a time, longest rows first: a batch that is too large fails at once."""
    order = sorted(rows, key=lambda i: -len(rows[i]))
    with Progress(len(order), title, "answer") as bar:
        for start in range(0, len(order), size):
            yield order[start : start + size]
            bar.advance(len(order[start : start + size]))


def padded_left(rows: list[list[int]], tokenizer: Any, device: str) -> dict[str, Tensor]:
    """input_ids, attention_mask and position_ids, each (rows, longest row), so that all rows end together."""
    width = max(map(len, rows))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = (torch.arange(width, device=device)[None] >= width - lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
