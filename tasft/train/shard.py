"""FSDP: the base model's layers dealt out to ranks, each gathered when it is its turn.

What is trained stays whole on every rank, and so do embeddings and the output head, which the fused ops of
tasft/loss/ops.py read as they stand: in bfloat16 0.5 of Llama 2 7B's 13.5 GB, 2.1 of Llama 3 8B's 16, whose vocabulary
is four times as large. So checkpoints, gradients, clipping and the optimizer are those of DDP.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from tasft.errors import UserError


def shard(model: PeftModel, device: str, world: int) -> None:
    """Deal the frozen weights of `model`'s layers out to the `world` ranks, in place; they move to `device`.

    From then on every forward and backward pass is one of all ranks together, except within `whole`. UserError where
    the model has no list of layers.
    """
    backbone = model.get_base_model().get_decoder()
    layers = getattr(backbone, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise UserError(
            f"trainer.strategy=fsdp deals out a model's layers, and {type(backbone).__name__} has no list of them:"
            " use trainer=ddp"
        )
    mesh = init_device_mesh(device, (world,))
    trained = {p for p in model.parameters() if p.requires_grad}
    shards = [fully_shard(each, mesh=mesh, reshard_after_forward=True, ignored_params=trained) for each in layers]
    for i, each in enumerate(shards):
        # said here, as FSDP would guess it from the passes before, of which the first rank has had more where it has
        # evaluated; the first layer names itself, which is there by then
        each.set_modules_to_backward_prefetch([shards[max(i - 1, 0)]])
    dealt = {p for layer in layers for p in layer.parameters()}
    # with nothing left to deal out: what ties the layers together, so that one is gathered while another computes
    fully_shard(backbone, mesh=mesh, ignored_params=trained | (set(model.parameters()) - dealt))


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Within it every rank holds all of `model`, which each may use by itself. All ranks enter and leave together."""
    dealt = [each for each in model.modules() if isinstance(each, FSDPModule)]
    for each in dealt:
        each.set_reshard_after_forward(False, recurse=False)
        each.unshard()
    try:
        yield
    finally:
        for each in dealt:
            each.set_reshard_after_forward(True, recurse=False)
            each.reshard()


def is_sharded(model: nn.Module) -> bool:
    """Whether passes through `model` are those of all ranks together."""
    return any(isinstance(each, FSDPModule) for each in model.modules())


def frozen_names(module: nn.Module) -> list[str]:
    """Names of all that is not trained: what DDP need not look at."""
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    everything = [name for name, _ in [*module.named_parameters(), *module.named_buffers()]]
    return [name for name in everything if name not in trained]


def memory_freed() -> None:
    """Hand what PyTorch keeps of the GPU's memory back to other processes."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
