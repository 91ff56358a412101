"""The linear warmup that most schedules begin with, and rules that they share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

from molgen_pretrain.schedules.base import Phase, Piece, Schedule


@dataclass(frozen=True, kw_only=True)
class WarmupSchedule(Schedule):
    """A schedule that begins with a linear warmup of `warmup_steps` updates to `lr_max`.

    Where `warmup_steps` is not given it is `warmup_frac` of `total_steps`, rounded down, or 0. It is an int
    once the schedule stands, so a copy with another `total_steps` keeps the warmup that it had.
    """

    lr_max: float
    warmup_steps: int = cast("int", None)
    warmup_frac: float | None = None

    def __post_init__(self) -> None:
        if self.warmup_steps is None:
            object.__setattr__(self, "warmup_steps", self._warmup_from_fraction())
        super().__post_init__()

    def problems(self) -> list[str]:
        found = super().problems()
        if self.warmup_steps < 0:
            found.append(f"warmup_steps={self.warmup_steps}: must not be negative")
        if self.warmup_frac is not None:
            if not 0 <= self.warmup_frac < 1:
                found.append(f"warmup_frac={self.warmup_frac}: must be in [0, 1)")
            if self.total_steps is None:
                found.append(f"warmup_frac={self.warmup_frac}: needs total_steps; or give warmup_steps")
        return found

    def warmup_piece(self) -> Piece:
        """The steps before `warmup_steps`."""
        return Piece(Phase.WARMUP, 0, self.warmup_steps - 1, 0, self.warmup_steps)

    def _warmup_from_fraction(self) -> int:
        fraction = self.warmup_frac
        if fraction is None or self.total_steps is None or not 0 <= fraction < 1:
            return 0  # for problems() to speak of
        return floor_fraction(self.total_steps, fraction)


def floor_fraction(steps: int, fraction: float) -> int:
    """floor(steps * fraction); the 1e-9 keeps 0.29 * 100 = 28.999999999999996 at the 29 that was meant."""
    return math.floor(steps * fraction + 1e-9)


def warmup_lr(step: int, warmup_steps: float, init: float, peak: float) -> float:
    """Linear warmup from `init` at step 0 to exactly `peak` at `warmup_steps`, which need not be whole."""
    if step >= warmup_steps:
        return peak
    return min(peak, init + (peak - init) * (step / warmup_steps))


def lr_range_problems(lr_max: float, lr_min: float, *, min_name: str = "lr_min") -> list[str]:
    """Rules that every schedule between two learning rates shares."""
    found = []
    if not (math.isfinite(lr_max) and lr_max > 0):
        found.append(f"lr_max={lr_max}: must be a positive number")
    if not 0 <= lr_min <= lr_max:
        found.append(f"{min_name}={lr_min}: must be between 0 and lr_max={lr_max}")
    return found


def warmup_init_problems(init: float, lr_max: float, *, name: str = "warmup_init") -> list[str]:
    """A warmup goes up."""
    return [] if 0 <= init <= lr_max else [f"{name}={init}: must be between 0 and lr_max={lr_max}"]
