"""The training loop. Everything it uses is built elsewhere (runner.py)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from molgen_pretrain.data.batch import Batch
from molgen_pretrain.data.plan import Position
from molgen_pretrain.errors import UserError
from molgen_pretrain.metrics.logger import MetricsLogger
from molgen_pretrain.metrics.memory import memory_gib
from molgen_pretrain.metrics.reduce import reduce_max, reduce_sums
from molgen_pretrain.metrics.throughput import Throughput
from molgen_pretrain.model.loss import IGNORE_INDEX
from molgen_pretrain.optim.optimizer import clip_grad_norm
from molgen_pretrain.optim.scheduler import ScheduleApplier
from molgen_pretrain.parallel.distributed import World
from molgen_pretrain.schedules import Schedule, WSDAdaptive, decay_crossings
from molgen_pretrain.training.plan import Plan, Progress
from molgen_pretrain.training.preemption import StopRequest

logger = logging.getLogger(__name__)


class NonFiniteLossError(UserError):
    """Loss or gradient of a step is NaN or infinite; the weights are still those of the step before."""


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the loop calls at certain steps; the runner decides what they do."""

    validate: Callable[[int], None]  # step
    save: Callable[[Progress, frozenset[int]], bool]  # with the steps whose checkpoints stay; whether it worked


@dataclass(frozen=True)
class StepResult:
    """One update, over all ranks; `max_loss` is None where it was not asked for."""

    loss: float
    grad_norm: float
    tokens: int
    sequences: int
    positions: int  # tokens and padding
    padding: int
    epoch: float
    stop_signal: int
    max_loss: float | None


class Trainer:
    """Runs updates from `progress.step` + 1 to `plan.steps`, or to a stop that all ranks agree on."""

    def __init__(
        self,
        *,
        model: nn.Module,
        applier: ScheduleApplier,
        batches: Iterable[Batch],
        plan: Plan,
        progress: Progress,
        hooks: Hooks,
        metrics: MetricsLogger,
        throughput: Throughput,
        stop: StopRequest,
        world: World,
        data_parallel_size: int,
        autocast: Callable[[], AbstractContextManager[object]],
        locate: Callable[[Batch], list[str]],
    ) -> None:
        self.model = model
        self.applier = applier
        self.batches = batches
        self.plan = plan
        self.progress = progress
        self.hooks = hooks
        self.metrics = metrics
        self.throughput = throughput
        self.stop = stop
        self.world = world
        self.data_parallel_size = data_parallel_size
        self.autocast = autocast
        self.locate = locate
        self.saved_step: int | None = None  # last one saved by this trainer
        self._interval_tokens = 0
        self._interval_positions = 0
        self._interval_padding = 0
        self._follow(applier.schedule)

    def train(self) -> int:
        """Run to the end. Returns 0, or the number of the signal that stopped the run early.

        Raises NonFiniteLossError on every rank, before the optimizer has moved.
        """
        batches = iter(self.batches)
        self.throughput.start()
        while self.progress.step < self.plan.steps:
            step = self.progress.step + 1
            micro_batches = self._next_micro_batches(batches)
            if not micro_batches:
                logger.warning("the data ended after step %d of %d (data.infinite=false)", step - 1, self.plan.steps)
                break
            result = self._update(step, micro_batches)
            self._advance(step, result, micro_batches[-1].position)
            if self.plan.logs_at(step, self._milestones):
                self._log(step, result)
                self._decide(step, result.loss)
            stops = result.stop_signal and step < self.plan.steps  # after the last step there is nothing to stop
            with self.throughput.paused():
                if self.plan.validates_at(step, self._milestones) and not stops:
                    self.hooks.validate(step)
                if self.plan.saves_at(step, self._kept) or stops:
                    self.save()
            if stops:
                return result.stop_signal
        return 0

    def save(self) -> bool:
        """Checkpoint the state after the last finished update; False, on every rank, where storage failed."""
        saved = self.hooks.save(self.progress, self._kept)
        if saved:
            self.saved_step = self.progress.step
        return saved

    def _next_micro_batches(self, batches: Iterator[Batch]) -> list[Batch]:
        """The micro-batches of one update on this device; empty where the data has ended (on all ranks)."""
        with self.throughput.waiting():
            found = []
            for _ in range(self.plan.accumulation_steps):
                batch = next(batches, None)
                if batch is None:
                    return []
                found.append(batch.to(self.world.device, non_blocking=True))
            return found

    def _update(self, step: int, micro_batches: list[Batch]) -> StepResult:
        """Forward, backward and optimizer step number `step` on one global batch."""
        # Whatever randomness a model may come to have depends on the step alone: resuming needs no stored state.
        torch.manual_seed(_step_seed(self.plan.seed, step, self.world.rank))
        self.applier.prepare(step)
        counts = self._count(micro_batches)
        losses = [
            self._backward(batch, counts["tokens"], is_last=batch is micro_batches[-1]) for batch in micro_batches
        ]
        grad_norm = float(clip_grad_norm(self.model.parameters(), self.plan.max_norm))
        totals = reduce_sums(
            {"loss": torch.stack(losses).double().sum(), "stop": float(self.stop.signal > 0)},
            device=self.world.device,
        )
        loss = totals["loss"] / counts["tokens"]
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise self._non_finite(step, loss, grad_norm, micro_batches, losses)
        self.applier.optimizer.step()
        self.applier.optimizer.zero_grad(set_to_none=True)
        return StepResult(
            loss=loss,
            grad_norm=grad_norm,
            tokens=int(counts["tokens"]),
            sequences=int(counts["sequences"]),
            positions=int(counts["positions"]),
            padding=int(counts["padding"]),
            epoch=micro_batches[-1].epoch,
            stop_signal=self._agreed_signal() if totals["stop"] else 0,
            max_loss=self._max_loss(micro_batches, losses) if self.plan.logs_at(step, self._milestones) else None,
        )

    def _count(self, micro_batches: list[Batch]) -> dict[str, float]:
        """Trained tokens, sequences and padding of the global batch; known before the forward, since the
        gradient of every micro-batch is weighted by the tokens of all."""
        return reduce_sums(
            {
                "tokens": torch.stack([(b.labels != IGNORE_INDEX).sum() for b in micro_batches]).sum(),
                "sequences": float(sum(b.input_ids.shape[0] for b in micro_batches)),
                "positions": float(sum(b.input_ids.numel() for b in micro_batches)),
                "padding": float(sum(b.padding for b in micro_batches)),
            },
            device=self.world.device,
        )

    def _backward(self, batch: Batch, tokens: float, *, is_last: bool) -> Tensor:
        """Accumulate the gradient of one micro-batch; return its loss sum, detached."""
        if isinstance(self.model, FSDPModule):
            # Shards are reduced once, with the last micro-batch.
            self.model.set_requires_gradient_sync(is_last)
            self.model.set_is_last_backward(is_last)
        with self.autocast():
            loss_sum = self.model(batch.input_ids, batch.labels)
        # FSDP divides the summed gradient by the ranks; multiplying by them leaves sum / tokens.
        (loss_sum * (self.data_parallel_size / tokens)).backward()
        return loss_sum.detach()

    def _advance(self, step: int, result: StepResult, position: Position) -> None:
        self.progress.step = step
        self.progress.tokens += result.tokens
        self.progress.sequences += result.sequences
        self.progress.position = position.state_dict()
        self.throughput.step()
        self._interval_tokens += result.tokens
        self._interval_padding += result.padding
        self._interval_positions += result.positions

    def _log(self, step: int, result: StepResult) -> None:
        schedule = self.applier.schedule
        row = {
            "kind": "train",
            "step": step,
            "loss": result.loss,
            "max_loss": result.max_loss,
            "grad_norm": result.grad_norm,
            "lr": schedule.lr(step),
            "weight_decay": schedule.weight_decay(step),
            "phase": schedule.phase(step).value,
            **self._group_rates(step),
            "epoch": result.epoch,
            "tokens": self.progress.tokens,
            "sequences": self.progress.sequences,
            "padding_frac": self._interval_padding / self._interval_positions,
            **self.throughput.read(self._interval_tokens),
            "memory_gib": memory_gib(self.world.device),
        }
        self.metrics.log(row)
        self._interval_tokens = self._interval_padding = self._interval_positions = 0

    def _group_rates(self, step: int) -> dict[str, float]:
        """`lr/<group>` of each parameter group, where there are several."""
        values = self.applier.group_values(step)
        return {f"lr/{name}": lr for name, (lr, _) in values.items()} if len(values) > 1 else {}

    def _decide(self, step: int, loss: float) -> None:
        """Let an adaptive schedule begin its decay after this step; every rank sees the same losses."""
        schedule = self.applier.schedule
        if not isinstance(schedule, WSDAdaptive) or schedule.decay_start is not None:
            return
        self.progress.losses = [*self.progress.losses, loss][-schedule.window :]
        if self.world.broadcast(schedule.decides(self.progress.losses, step)):
            self._follow(schedule.with_decay_start(step))
            logger.info("the decay begins after step %d: %s", step, self.applier.schedule.describe())

    def _follow(self, schedule: Schedule) -> None:
        """Train by `schedule` from the next update on; a decay that was decided early ends the run early."""
        self.applier.schedule = schedule
        if isinstance(schedule, WSDAdaptive) and schedule.decay_start is not None:
            self.plan = replace(self.plan, steps=min(self.plan.steps, schedule.milestones[-1]))
        self._milestones = frozenset(schedule.milestones)
        self._kept = self._milestones.union(decay_crossings(schedule, self.plan.snapshot_lrs, self.plan.steps))

    def _max_loss(self, micro_batches: list[Batch], losses: list[Tensor]) -> float:
        """Highest mean loss of any micro-batch on any rank: one bad batch shows here before it does in loss."""
        means = [
            loss / (batch.labels != IGNORE_INDEX).sum().clamp(min=1)
            for batch, loss in zip(micro_batches, losses, strict=True)
        ]
        return reduce_max({"max_loss": torch.stack(means).max()}, device=self.world.device)["max_loss"]

    def _agreed_signal(self) -> int:
        return int(reduce_max({"signal": float(self.stop.signal)}, device=self.world.device)["signal"])

    def _non_finite(
        self, step: int, loss: float, grad_norm: float, micro_batches: list[Batch], losses: list[Tensor]
    ) -> NonFiniteLossError:
        """The error with the lines of the batches at fault: those with a bad loss, or all if none has one."""
        broken = [b for b, value in zip(micro_batches, losses, strict=True) if not torch.isfinite(value)]
        found = self.world.gather((bool(broken), [self.locate(b) for b in broken or micro_batches]))
        anywhere = any(is_broken for is_broken, _ in found)
        lines = [
            line
            for is_broken, batches in found
            if is_broken or not anywhere
            for batch_lines in batches
            for line in batch_lines
        ]
        return NonFiniteLossError(
            f"step {step}: loss is {loss}, gradient norm {grad_norm}; stopped before the optimizer moved, "
            f"the weights are those of step {step - 1}. The batch came from: {', '.join(lines)}"
        )


def _step_seed(seed: int, step: int, rank: int) -> int:
    return ((seed * 1_000_003 + step) * 65_537 + rank) % 2**63
