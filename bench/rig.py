"""Randomly initialised Llamas with an adapter, made-up examples, and the fine-tuning step in a bare loop."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from peft import PeftModel
from torch.optim import Optimizer
from transformers import AutoModelForCausalLM, LlamaConfig

from tasft.data.steps import StepBatch, Weighted, collate, mismatched
from tasft.data.tokenize import Tokenized
from tasft.loss.emd import emd
from tasft.loss.kto import kto_desirable, kto_undesirable
from tasft.loss.nlcl import nlcl
from tasft.loss.npo import npo
from tasft.loss.objective import Objective
from tasft.loss.sft import sft
from tasft.model.lora import with_lora
from tasft.schema import Lora
from tasft.train.head import split, token_embedding
from tasft.train.module import Cutting, FineTuning
from tasft.train.schedule import Schedule

OBJECTIVES = {
    "sft": Objective(sft, None, weight=0.0, group=3),
    "emd": Objective(sft, emd, weight=4.0, group=3),
    "nlcl": Objective(sft, nlcl, weight=4.0, group=3),
    "npo": Objective(sft, partial(npo, beta=0.1), weight=4.0, group=3, reference=True),
    "kto": Objective(
        partial(kto_desirable, beta=0.1), partial(kto_undesirable, beta=0.1), weight=4.0, group=3,
        weighting="examples", reference=True, kl=True,
    ),
}  # fmt: skip
PROMPT_SHARE = 0.6  # of an example's tokens; the rest is response
PAD = 0


@dataclass(frozen=True)
class Shape:
    """A Llama without its weights. Feed-forward layers are Llama-7B's 2.6875 times as wide as the rest."""

    vocabulary: int
    width: int
    layers: int
    heads: int

    @property
    def head_parameters(self) -> int:
        """V D."""
        return self.vocabulary * self.width

    @property
    def backbone_parameters(self) -> int:
        """Of the matrices that every token is multiplied by, head apart."""
        return self.layers * self.width * (4 * self.width + 3 * self._feed_forward)

    @property
    def head_share(self) -> float:
        """Of the FLOPs of a step that makes logits at every position."""
        return self.head_parameters / (self.head_parameters + self.backbone_parameters)

    @property
    def _feed_forward(self) -> int:
        return self.width * 43 // 16

    def config(self) -> LlamaConfig:
        """As transformers wants it."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self._feed_forward,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=2048,
        )

    def __str__(self) -> str:
        return f"V={self.vocabulary} D={self.width} L={self.layers}, head {self.head_share:.0%}"


def llama(shape: Shape, device: str = "cpu", dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> PeftModel:
    """Random weights, frozen, under a random adapter on q_proj and v_proj (r = 8); ready to train."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(shape.config(), dtype=dtype, attn_implementation=attention)
        return with_lora(model.requires_grad_(False), Lora(), seed=0).train()


def fine_tuning(model: PeftModel, loss: str, max_tokens: int, packing: bool = False) -> FineTuning:
    """The module that a run trains, around `model`; several may share one model."""
    adamw = partial(torch.optim.AdamW, lr=1e-4)
    cutting, schedule = Cutting(max_tokens, packing, PAD), Schedule("constant", 0, 1)
    objective, embedding = OBJECTIVES[loss], token_embedding(model, "input")
    return FineTuning(model, split(model), embedding, objective, cutting, adamw, schedule, clip=1.0, seed=0)


def examples(lengths: Sequence[int], vocabulary: int, toxic: Sequence[int] = ()) -> list[Tokenized]:
    """Random tokens; those at the places `toxic` are tagged so."""
    rng = random.Random(0)
    places = set(toxic)
    return [
        Tokenized(tuple(rng.choices(range(1, vocabulary), k=n)), max(int(n * PROMPT_SHARE), 1), i in places)
        for i, n in enumerate(lengths)
    ]


def alpaca_like(count: int) -> list[int]:
    """Seeded lengths in tokens, template included: log-normal, within 40 and 512, of mean 187 in the long run."""
    rng = random.Random(0)
    return [min(max(round(rng.lognormvariate(5.11, 0.5)), 40), 512) for _ in range(count)]


def step_batch(rows: Sequence[Tokenized], loss: str) -> StepBatch:
    """All rows as one optimizer step of `loss`."""
    weights = OBJECTIVES[loss].weights([t.response_length for t in rows], [t.toxic for t in rows])
    return StepBatch(0, 0, [Weighted(t, w, i) for i, (t, w) in enumerate(zip(rows, weights, strict=True))])


def optimizer_of(module: FineTuning) -> Optimizer:
    """A fresh optimizer over what the module trains."""
    return module.make_optimizer(module.trained())


def bare_step(module: FineTuning, optimizer: Optimizer, batch: StepBatch) -> None:
    """The module's own step, without Lightning around it."""
    cutting = module.cutting
    optimizer.zero_grad()
    kl = module.drift(module.cuts(mismatched(batch.examples), 0, 1)).clamp(min=0) if module.objective.kl else None
    for cut in module.cuts(batch.examples, 0, 1):
        micro = collate(cut, cutting.pad_id, cutting.packing).to(module.device)
        module.terms(micro, kl=kl).total.backward()
    torch.nn.utils.clip_grad_norm_(module.trained(), 1.0)
    optimizer.step()
