"""Constant learning rate after an optional warmup."""

from __future__ import annotations

import math
from dataclasses import dataclass

from molgen_pretrain.schedules.base import Phase, Piece
from molgen_pretrain.schedules.warmup import WarmupSchedule, lr_range_problems, warmup_init_problems, warmup_lr


@dataclass(frozen=True, kw_only=True)
class Constant(WarmupSchedule):
    """Linear warmup from `warmup_init` at step 0 to `lr_max` at `warmup_steps`, then `lr_max`."""

    warmup_init: float = 0.0

    def lr(self, step: int) -> float:
        return warmup_lr(step, self.warmup_steps, self.warmup_init, self.lr_max)

    def piece(self, step: int) -> Piece:
        if step < self.warmup_steps:
            return self.warmup_piece()
        return Piece(Phase.STABLE, self.warmup_steps, None, self.warmup_steps, math.inf)

    def describe(self) -> str:
        return f"constant: warmup {self.warmup_steps} steps from {self.warmup_init:g}, then {self.lr_max:g}"

    def problems(self) -> list[str]:
        found = super().problems() + lr_range_problems(self.lr_max, 0.0)
        return found + warmup_init_problems(self.warmup_init, self.lr_max)
