"""Constant learning rate after an optional warmup."""

from __future__ import annotations

from dataclasses import dataclass

from molgen_pretrain.schedules.base import Phase, WarmupSchedule, lr_range_problems, warmup_lr


@dataclass(frozen=True, kw_only=True)
class Constant(WarmupSchedule):
    """Linear warmup from `warmup_init` at step 0 to `lr_max` at `warmup_steps`, then `lr_max`."""

    lr_max: float
    warmup_init: float = 0.0

    def lr(self, step: int) -> float:
        return warmup_lr(step, self.warmup_steps, self.warmup_init, self.lr_max)

    def phase(self, step: int) -> Phase:
        return Phase.WARMUP if step < self.warmup_steps else Phase.STABLE

    def describe(self) -> str:
        return f"constant: warmup {self.warmup_steps} steps from {self.warmup_init:g}, then {self.lr_max:g}"

    def problems(self) -> list[str]:
        found = super().problems() + lr_range_problems(self.lr_max, 0.0)
        if not 0 <= self.warmup_init <= self.lr_max:
            found.append(f"warmup_init={self.warmup_init}: must be between 0 and lr_max={self.lr_max}")
        return found
