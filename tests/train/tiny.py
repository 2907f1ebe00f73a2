"""A tiny random Llama with an adapter, its tokens, and a way to train it."""

from functools import partial

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tasft.data.steps import StepBatches
from tasft.data.tokenize import Tokenized
from tasft.loss.dpo import dpo
from tasft.loss.emd import emd
from tasft.loss.kto import kto_desirable, kto_undesirable
from tasft.loss.nlcl import nlcl
from tasft.loss.npo import npo
from tasft.loss.objective import Objective
from tasft.loss.orpo import orpo
from tasft.loss.sft import sft
from tasft.model.lora import with_lora
from tasft.schema import Lora
from tasft.train.head import split, token_embedding
from tasft.train.module import Cutting, FineTuning
from tasft.train.schedule import Schedule
from tasft.train.shard import shard

VOCABULARY = 61
OBJECTIVES = {
    "sft": Objective(sft, None, 0.0, 3),
    "emd": Objective(sft, emd, 0.7, 3),
    "nlcl": Objective(sft, nlcl, 1.5, 3),
    "kto": Objective(kto_desirable, kto_undesirable, 1.5, 3, weighting="examples", reference=True, kl=True),
    "npo": Objective(sft, npo, 0.5, 3, reference=True),
    "dpo": Objective(sft, dpo, 0.5, 3, reference=True, pairs=True),
    "orpo": Objective(sft, orpo, 0.5, 3, pairs=True),
}


def rows(count=40, toxic=8):
    """Examples of many lengths; the first `toxic` are toxic."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for i in range(count):
        length = int(torch.randint(4, 23, (), generator=generator))
        ids = torch.randint(VOCABULARY, (length,), generator=generator).tolist()
        made.append(Tokenized(tuple(ids), 1 + i % 3, i < toxic))
    return made


def llama(dtype=torch.float32, vocabulary=VOCABULARY):
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype).requires_grad_(False)


def module(
    loss="emd", dropout=0.0, max_tokens=64, packing=False, steps=12, lr=1e-2, model=None, world=1, adaptive=None
):
    adapted = with_lora(model or llama(), Lora(4, 8, dropout, ["q_proj", "v_proj"]), seed=5)
    torch.manual_seed(7)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)  # away from B = 0, where A has no gradient
    if world > 1:
        shard(adapted, "cpu", world)
    return FineTuning(
        adapted, split(adapted), token_embedding(adapted, "input"), OBJECTIVES[loss],
        Cutting(max_tokens, packing, pad_id=0), partial(torch.optim.AdamW, lr=lr),
        Schedule("linear", 2, steps), clip=1.0, seed=9, adaptive=adaptive,
    )  # fmt: skip


def batches(loss="emd", batch_size=12, epochs=3, count=40):
    return StepBatches(rows(count), batch_size, epochs, 2, OBJECTIVES[loss].weights)
