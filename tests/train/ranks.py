"""What the ranks of tests/train/test_ranks.py do, and what one process does in their place."""

import json
import tempfile
from pathlib import Path

import torch

from tasft.data.steps import StepBatches
from tasft.data.tokenize import Tokenized
from tasft.evaluate.generating import generate
from tasft.loss.adaptive import Adaptive, Goal
from tasft.model.scratch import train_tokenizer
from tasft.prompt import prompt_format
from tasft.train.fit import Files, Watch, fit
from tasft.train.reference import precomputed
from tasft.train.shard import whole
from tests.train.tiny import OBJECTIVES, batches, llama, module, rows

STEPS = 3
PAIRED = [
    Tokenized((i, 2, 3, 4, 5 + i), 1 + i % 2, True, rejected=Tokenized((i, 2, 9, 8 + i), 1 + i % 2, True))
    for i in range(6)
]


def data_of(loss, batch_size=7):
    """Twenty rows in steps of seven: an odd number, and fewer toxic rows than ranks in some steps."""
    few = batches(loss, batch_size, epochs=1, count=20)
    toxic = PAIRED if OBJECTIVES[loss].pairs else rows(20, 3)[:3]
    few.examples = [*rows(20, 3)[3:], *toxic]
    return few


def cases(world):
    """What is trained, by name: a module for `world` ranks to share, one in which each has all, and their batches."""
    for loss in OBJECTIVES:
        for dropout in (0.0, 0.3) if loss in ("emd", "kto") else (0.0,):
            yield f"{loss} {dropout}", module(loss, dropout, 40, steps=STEPS, world=world), data_of(loss)
    packed = module("nlcl", 0.3, 30, packing=True, steps=STEPS, world=world)
    yield "packed", packed, data_of("nlcl")
    single = StepBatches(rows(8, 2)[:5], 1, 1, 2, OBJECTIVES["emd"].weights)
    yield "a step of one example", module("emd", 0.3, steps=5, world=world), single
    goal = Goal(1.2, 0.1, 2.0, 4.0, 8, 30)
    adaptive = Adaptive(goal, 0.7, lambda share: 4.0, STEPS, 3)
    yield "auto", module("emd", 0.3, 40, steps=STEPS, world=world, adaptive=adaptive), data_of("emd")
    known = module("npo", 0.0, 40, steps=STEPS, world=world)
    data = data_of("npo")
    with whole(known.model), tempfile.TemporaryDirectory() as folder:
        data.references = precomputed(known.model, known.parts, data.examples, 40, False, 0, Path(folder), ["tiny"])
    yield "precomputed", known, data


def trained(made, data, group, folder, name, watch=None):
    """Train; the metrics and the trained weights."""
    metrics = []
    files = Files(folder / name.replace(" ", "-"), metrics.append, lambda row: None)
    fit(made, data, files, "cpu", checkpoint_every=100, watch=watch, group=group)
    return {"metrics": metrics, "weights": torch.cat([p.detach().flatten() for p in made.trained()]).tolist()}


def train_all(folder, sharded, group, looked=None):
    """Train every case with the ranks of `group`; the first one writes what came out."""
    world = group.world if sharded else 1
    found = {name: trained(made, data, group, folder, name) for name, made, data in cases(world)}
    found["asked"] = asked(folder, group, world)
    if group.first:
        (folder / "found.json").write_text(json.dumps(found))


def both_ways(folder, group, looked=None):
    """Train every case under DDP, and with the model dealt out."""
    for name, sharded in (("ddp", False), ("fsdp", True)):
        train_all(folder / name, sharded, group)


def asked(folder, group, world):
    """What the model in training answers, and what became of the training that was asked."""
    made = module("emd", 0.3, 40, steps=STEPS, model=llama(vocabulary=300), world=world)
    tokenizer, said = train_tokenizer(["Why? Because."], 270), []

    def look(step):  # on the first rank alone
        prompts = ["Why?", "Who? Where?"]
        answers = generate(made.model, tokenizer, prompts, prompt_format("short", tokenizer), 6, 2)
        said.append([step, *(answer.text for answer in answers)])

    return trained(made, data_of("emd"), group, folder, "asked", Watch(look, 2)) | {"said": said}
