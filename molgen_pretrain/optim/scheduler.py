"""The object that applies a schedule; it has no state but what the schedule says of a step."""

from __future__ import annotations

import torch

from molgen_pretrain.schedules import Schedule


class ScheduleApplier:
    """Writes learning rate and weight decay of an update into an optimizer's groups."""

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: Schedule) -> None:
        self.optimizer = optimizer
        self.schedule = schedule

    def prepare(self, step: int) -> None:
        """Set every group to the values of update `step` (counted from 1), before the update runs."""
        lr, weight_decay = self.schedule.lr(step), self.schedule.weight_decay(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
            group["weight_decay"] = weight_decay * group["wd_scale"]
