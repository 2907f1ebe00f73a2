"""The fine-tuning step: one forward pass per micro-batch for safe and toxic rows, one optimizer step per step batch."""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import lightning
import torch
from peft import PeftModel
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tasft.data.steps import MicroBatch, StepBatch, Weighted, collate, micro_batches, mismatched, rank_share
from tasft.errors import UserError
from tasft.loss.adaptive import Adaptive
from tasft.loss.inputs import LossInputs
from tasft.loss.objective import Objective, Terms
from tasft.loss.vocabulary import TokenEmbedding
from tasft.model.dropout import with_example_dropout
from tasft.train.head import SplitModel
from tasft.train.reference import base_logps, response_logps
from tasft.train.schedule import Schedule, rate
from tasft.train.shard import is_sharded


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
    toxic_fall: float | None = None  # mean fall of the step's toxic answers, nats, where lambda is set by it

    def metrics(self) -> dict[str, float]:
        """One line of metrics.jsonl: only numbers that repeat."""
        return {name: value for name, value in vars(self).items() if value is not None}


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
        adaptive: Adaptive | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold the adapter alone
        self.model = model
        self.draws, self.draw = with_example_dropout(model), 0
        self.sharded = is_sharded(model)
        self.parts, self.embedding = parts, embedding
        self.objective, self.cutting = objective, cutting
        self.make_optimizer, self.schedule, self.clip = make_optimizer, schedule, clip
        self.seed = seed
        self.adaptive = adaptive  # sets lambda step by step, where it is not fixed
        self.result: StepResult | None = None  # of the last step, for the callbacks
        self.asked_to_leave = False  # of this rank
        self.leaving = False  # whether any rank was asked to before the last step's end: the same on all of them

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
        cuts = self.cuts(batch.examples, self.global_rank, world)
        kl = self._kl(batch) if self.objective.kl else None
        objective = self.objective if self.adaptive is None else replace(self.objective, weight=self.adaptive.weight)
        # safe and toxic term; summed fall of toxic answers, and their number; ranks that were asked to leave
        sums = torch.zeros(5, device=self.device)
        optimizer.zero_grad()
        for i, cut in enumerate(cuts):
            micro = collate(cut, self.cutting.pad_id, self.cutting.packing).to(self.device)
            with nullcontext() if i == len(cuts) - 1 else self._no_sync():
                terms = self.terms(micro, objective, kl)
                self.manual_backward(terms.total * world)  # DDP takes the mean over ranks; the loss is their sum
            watched = terms.watched or (sums.new_zeros(()), sums.new_zeros(()))
            sums[:4] += torch.stack([terms.safe.detach(), terms.toxic.detach(), *watched])
        sums[4] = float(self.asked_to_leave)
        sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        safe, toxic, fall, answers, asked = sums.tolist()
        self.leaving = asked > 0
        loss = safe + objective.weight * toxic
        self._finite(loss, "loss", batch.step)
        norm = float(torch.nn.utils.clip_grad_norm_(self.trained(), self.clip or float("inf")))
        self._finite(norm, "gradient", batch.step)
        scheduler: Any = self.lr_schedulers()
        lr = optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
        if self.adaptive is not None:
            self.adaptive.update(fall, round(answers), safe, batch.step)
        toxic_examples = sum(e.tokens.toxic for e in batch.examples)
        self.result = StepResult(
            step=batch.step + 1,
            epoch=batch.epoch,
            loss=loss,
            safe_loss=safe,
            toxic_loss=toxic,
            weight=objective.weight,
            lr=lr,
            grad_norm=norm,
            safe_examples=len(batch.examples) - toxic_examples,
            toxic_examples=toxic_examples,
            tokens=sum(e.size for e in batch.examples),
            toxic_fall=fall / answers if answers else None,
        )

    def cuts(self, examples: Sequence[Weighted], rank: int, world: int, least: int = 1) -> list[list[Weighted]]:
        """The micro-batches of a rank's share of a step's examples, `least` at least.

        Where the model is sharded as many as every other rank has: a pass through it is one of all ranks. What makes
        up for missing ones, as on a rank without examples, weighs nothing.
        """
        cut = [
            micro_batches(rank_share(examples, each, world), self.cutting.max_tokens, self.cutting.packing)
            for each in (range(world) if self.sharded else [rank])
        ]
        own, most = cut[rank if self.sharded else 0], max(map(len, cut))
        idle = replace(min(examples, key=lambda e: (e.size, e.index)), weight=0.0)
        return own + [[idle]] * (max(most, least) - len(own))

    def terms(self, micro: MicroBatch, objective: Objective | None = None, kl: Tensor | None = None) -> Terms:
        """What the micro-batch contributes to the step's loss; response tokens are gathered before the head.

        `objective` is the module's own unless lambda changes from step to step, `kl` the step's reference point ().
        """
        objective = objective or self.objective
        reference = micro.reference
        compares = objective.reference or self.adaptive is not None
        # of safe rows KTO's alone do; where the model is sharded, another rank's rows may be toxic
        if reference is None and compares and (objective.kl or self.sharded or bool(micro.toxic.any())):
            reference = base_logps(self.model, self.parts, micro)
        self.draws.spans = [(start, length, self.draw * 65_537 + place) for start, length, place in micro.spans]
        hidden = self.parts.hidden(micro.input_ids, micro.position_ids, micro.attention_mask)
        hidden = hidden.flatten(0, 1)  # (M * L, D)
        toxic = micro.toxic[micro.row]  # (N,)

        def inputs(keep: Tensor) -> LossInputs:
            return LossInputs(
                hidden.index_select(0, micro.at[keep]),  # indexing with [] is slower backward
                micro.labels[keep], micro.row[keep], self.parts.head, self.embedding, size=len(micro.toxic),
                ref_logps=None if reference is None else reference[keep], kl=kl, partner=micro.partner,
            )  # fmt: skip

        safe_inputs = inputs(~toxic)
        if not bool(toxic.any()):
            return objective.terms(safe_inputs, micro.weights * ~micro.toxic)
        toxic_inputs = inputs(toxic)
        terms = objective.terms(safe_inputs, micro.weights * ~micro.toxic, toxic_inputs, micro.weights * micro.toxic)
        if self.adaptive is None:
            return terms
        assert toxic_inputs.ref_logps is not None
        counted = micro.toxic & (micro.weights > 0)  # without what stands in for a rank's missing examples
        fall = (toxic_inputs.ref_logps - toxic_inputs.logps.detach())[counted[toxic_inputs.row]].sum()
        return replace(terms, watched=(fall, counted.sum()))

    def _kl(self, batch: StepBatch) -> Tensor:
        """KTO's reference point (): how much likelier mismatched answers are now than under the base model, >= 0.

        The mean over the whole step batch, on all ranks, of log Q(y|x) - log Q_base(y|x) with x the prompt of one
        example and y the answer to the next. A batch of one has no mismatch: 0.
        """
        if len(batch.examples) < 2:
            return torch.zeros((), device=self.device)
        cuts = self.cuts(mismatched(batch.examples), self.global_rank, self.trainer.world_size, least=0)
        return self.trainer.strategy.reduce(self.drift(cuts), reduce_op="sum").clamp(min=0)

    @torch.no_grad()
    def drift(self, cuts: Sequence[Sequence[Weighted]]) -> Tensor:
        """sum_i w_i (log Q(y_i) - log Q_base(y_i)) (), nats, over the micro-batches' responses, without dropout."""
        total = torch.zeros((), device=self.device)
        training = self.model.training
        self.model.eval()
        for cut in cuts:
            micro = collate(cut, self.cutting.pad_id, self.cutting.packing).to(self.device)
            difference = response_logps(self.parts, micro) - base_logps(self.model, self.parts, micro)
            total += (difference * micro.weights[micro.row]).sum()
        self.model.train(training)
        return total

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
        if self.adaptive is not None:
            checkpoint["adaptive"] = self.adaptive.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the lambda that was reached."""
        if self.adaptive is not None:
            self.adaptive.restore(checkpoint["adaptive"])
