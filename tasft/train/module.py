"""The fine-tuning step: one forward pass per micro-batch for safe and toxic rows, one optimizer step per step batch."""

import math
import random
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import lightning
import torch
from peft import PeftModel
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tasft.data.steps import MicroBatch, StepBatch, collate, micro_batches, rank_share
from tasft.errors import UserError
from tasft.loss.inputs import LossInputs
from tasft.loss.objective import Objective, Terms
from tasft.loss.vocabulary import TokenEmbedding
from tasft.model.dropout import with_example_dropout
from tasft.train.head import SplitModel
from tasft.train.schedule import Schedule, rate


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step measured; terms are those of the whole step, over all micro-batches and ranks."""

    step: int  # counted from 1
    epoch: int  # counted from 0
    loss: float  # safe_loss + weight * toxic_loss
    safe_loss: float
    toxic_loss: float
    weight: float
    lr: float
    grad_norm: float  # before clipping
    safe_examples: int
    toxic_examples: int
    tokens: int  # without padding

    def metrics(self) -> dict[str, float]:
        """One line of metrics.jsonl: only numbers that repeat."""
        return vars(self).copy()


@dataclass(frozen=True)
class Cutting:
    """How a step batch becomes micro-batches: speed and memory, never numbers."""

    max_tokens: int
    packing: bool
    pad_id: int


class FineTuning(lightning.LightningModule):
    """An adapter trained on an objective. One Lightning batch is one optimizer step, however it is cut up."""

    def __init__(
        self,
        model: PeftModel,
        parts: SplitModel,
        embedding: TokenEmbedding | None,
        objective: Objective,
        cutting: Cutting,
        make_optimizer: Callable[[Iterable[Tensor]], Optimizer],
        schedule: Schedule,
        clip: float | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold the adapter alone
        self.model = model
        self.draws, self.draw = with_example_dropout(model), 0
        self.parts, self.embedding = parts, embedding
        self.objective, self.cutting = objective, cutting
        self.make_optimizer, self.schedule, self.clip = make_optimizer, schedule, clip
        self.seed = seed
        self.result: StepResult | None = None  # of the last step, for the callbacks

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimizer over the adapter and its learning-rate schedule, stepped once per optimizer step."""
        optimizer = self.make_optimizer(self.trained())
        return {"optimizer": optimizer, "lr_scheduler": LambdaLR(optimizer, lambda step: rate(self.schedule, step))}

    def trained(self) -> list[Tensor]:
        """The parameters that are trained."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def transfer_batch_to_device(self, batch: StepBatch, device: torch.device, dataloader_idx: int) -> StepBatch:
        """Leave the step batch where it is: its micro-batches move one by one."""
        return batch

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        """Gradients of all micro-batches of this rank, then one optimizer step; UserError if a loss is not finite."""
        # all that is drawn is a function of (seed, step), so a resumed run draws what an undisturbed one draws
        self.draw = random.Random(f"{self.seed} step {batch.step}").getrandbits(40)
        torch.manual_seed(self.draw)
        optimizer: Any = self.optimizers(use_pl_optimizer=True)
        world = self.trainer.world_size
        # a rank without examples takes part with one that weighs nothing
        examples = rank_share(batch.examples, self.global_rank, world) or [replace(batch.examples[0], weight=0.0)]
        cuts = micro_batches(examples, self.cutting.max_tokens, self.cutting.packing)
        sums = torch.zeros(2, device=self.device)
        optimizer.zero_grad()
        for i, cut in enumerate(cuts):
            micro = collate(cut, self.cutting.pad_id, self.cutting.packing).to(self.device)
            with nullcontext() if i == len(cuts) - 1 else self._no_sync():
                terms = self.terms(micro)
                self.manual_backward(terms.total * world)  # DDP takes the mean over ranks; the loss is their sum
            sums += torch.stack([terms.safe.detach(), terms.toxic.detach()])
        sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        safe, toxic = sums.tolist()
        loss = safe + self.objective.weight * toxic
        self._finite(loss, "loss", batch.step)
        norm = float(torch.nn.utils.clip_grad_norm_(self.trained(), self.clip or float("inf")))
        self._finite(norm, "gradient", batch.step)
        scheduler: Any = self.lr_schedulers()
        lr = optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
        toxic_examples = sum(e.tokens.toxic for e in batch.examples)
        self.result = StepResult(
            step=batch.step + 1,
            epoch=batch.epoch,
            loss=loss,
            safe_loss=safe,
            toxic_loss=toxic,
            weight=self.objective.weight,
            lr=lr,
            grad_norm=norm,
            safe_examples=len(batch.examples) - toxic_examples,
            toxic_examples=toxic_examples,
            tokens=sum(len(e.tokens.input_ids) for e in batch.examples),
        )

    def terms(self, micro: MicroBatch) -> Terms:
        """What the micro-batch contributes to the step's loss; response tokens are gathered before the head."""
        self.draws.spans = [(start, length, self.draw * 65_537 + place) for start, length, place in micro.spans]
        hidden = self.parts.hidden(micro.input_ids, micro.position_ids, micro.attention_mask)
        hidden = hidden.flatten(0, 1)  # (M * L, D)
        toxic = micro.toxic[micro.row]  # (N,)
        safe_inputs = self._inputs(micro, hidden, ~toxic)
        if not bool(toxic.any()):
            return self.objective.terms(safe_inputs, micro.weights * ~micro.toxic)
        toxic_inputs = self._inputs(micro, hidden, toxic)
        return self.objective.terms(
            safe_inputs, micro.weights * ~micro.toxic, toxic_inputs, micro.weights * micro.toxic
        )

    def _inputs(self, micro: MicroBatch, hidden: Tensor, keep: Tensor) -> LossInputs:
        return LossInputs(
            hidden.index_select(0, micro.at[keep]),  # indexing with [] is slower backward
            micro.labels[keep], micro.row[keep], self.parts.head, self.embedding, size=len(micro.toxic),
        )  # fmt: skip

    def _no_sync(self) -> Any:
        """Gradients of all but the last micro-batch stay on their rank."""
        wrapped: Any = self.trainer.strategy.model
        return wrapped.no_sync() if hasattr(wrapped, "no_sync") else nullcontext()

    def _finite(self, value: float, what: Literal["loss", "gradient"], step: int) -> None:
        if not math.isfinite(value):
            raise UserError(
                f"the {what} is {value} at step {step + 1}: checkpoints before it are kept;"
                " try a smaller optimizer.lr or loss.weight"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained; the base model is not this run's to save."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
