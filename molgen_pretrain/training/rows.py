"""The train row: what metrics.jsonl and the console say about a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from molgen_pretrain.data.batch import Batch
from molgen_pretrain.metrics.memory import memory_gib
from molgen_pretrain.metrics.throughput import Throughput
from molgen_pretrain.optim.scheduler import ScheduleApplier
from molgen_pretrain.training.plan import Progress
from molgen_pretrain.training.update import StepResult


def train_row(
    step: int, result: StepResult, last: Batch, applier: ScheduleApplier, progress: Progress
) -> dict[str, Any]:
    """The numbers of one step; `last` is its last micro-batch, which knows where the data stands after it."""
    schedule = applier.schedule
    rates = applier.group_values(step)
    return {
        "kind": "train",
        "step": step,
        "loss": result.loss,
        "max_loss": result.max_loss,
        "grad_norm": result.grad_norm,
        "lr": schedule.lr(step),
        "weight_decay": schedule.weight_decay(step),
        "phase": schedule.phase(step).value,
        **({f"lr/{name}": lr for name, (lr, _) in rates.items()} if len(rates) > 1 else {}),
        **result.class_losses,
        "epoch": last.epoch,
        **{f"epoch/{name}": epoch for name, epoch in last.source_epochs.items()},
        "tokens": progress.tokens,
        "sequences": progress.sequences,
        "truncated_units": progress.truncated_units,
        "dropped_units": progress.dropped_units,
        "anomalies": progress.anomalies,
    }


class Interval:
    """What has been summed up since the last logged step.

    `flops(tokens=, attention_pairs=)`: what a forward and backward of so much needs.
    """

    def __init__(self, flops: Callable[..., float] | None) -> None:
        self._flops = flops
        self._begin()

    def add(self, result: StepResult) -> None:
        self._tokens += result.tokens
        self._positions += result.positions
        self._attention_pairs += result.attention_pairs
        self._padding += result.padding

    def take(self, throughput: Throughput, device: torch.device) -> dict[str, float]:
        """Padding, rates and memory of the interval, and begin anew."""
        flops = self._flops(tokens=self._positions, attention_pairs=self._attention_pairs) if self._flops else None
        row = {
            "padding_frac": self._padding / self._positions,
            **throughput.read(self._tokens, flops),
            "memory_gib": memory_gib(device),
            "checkpoint_stall_seconds": self.stall_seconds,
        }
        self._begin()
        return row

    def _begin(self) -> None:
        self._tokens = self._positions = self._attention_pairs = self._padding = 0
        self.stall_seconds = 0.0  # during which training stood still for checkpoints
