"""What every schedule offers, and the weight decay that runs beside the learning rate."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import Literal, get_args

from molgen_pretrain.errors import UserError

WeightDecayStyle = Literal["constant", "linear", "cosine"]


class Phase(str, Enum):
    """Where in the plan a step lies; the value is what logs and metrics show."""

    WARMUP = "warmup"
    STABLE = "stable"
    DECAY = "decay"
    FINAL = "final"


class ScheduleError(UserError):
    """A schedule that cannot be; `problems` holds one `field=value: rule` each."""

    def __init__(self, name: str, problems: list[str]) -> None:
        super().__init__(f"{name}: " + "; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """Learning rate and weight decay of every update.

    `total_steps` is the length of the run in updates; schedules that do not need it accept None. Weight
    decay goes from `start_weight_decay` to `end_weight_decay` (None: stays) over `total_steps`, constant,
    linear or cosine in the sense of Megatron-LM's `weight_decay_incr_style`.

    Raises ScheduleError at construction, with every broken rule in one message.
    """

    total_steps: int | None = None
    start_weight_decay: float = 0.0
    end_weight_decay: float | None = None
    weight_decay_incr_style: WeightDecayStyle = "constant"

    def __post_init__(self) -> None:
        if found := self.problems():
            raise ScheduleError(type(self).__name__, found)

    @abstractmethod
    def lr(self, step: int) -> float:
        """Learning rate of update `step`; defined for every step >= 0, exact at the boundaries."""

    @abstractmethod
    def phase(self, step: int) -> Phase:
        """Phase that update `step` belongs to."""

    @abstractmethod
    def describe(self) -> str:
        """The plan in one line, for the log."""

    @property
    def milestones(self) -> tuple[int, ...]:
        """Steps after which the weights are finished models and worth keeping for good."""
        return ()

    def weight_decay(self, step: int) -> float:
        """Weight decay of update `step`."""
        start, end = self.start_weight_decay, self.end_weight_decay
        if self.weight_decay_incr_style == "constant" or end is None or self.total_steps is None:
            return start
        if step >= self.total_steps:
            return end
        progress = step / self.total_steps
        if self.weight_decay_incr_style == "cosine":
            progress = 0.5 * (1.0 - math.cos(math.pi * progress))
        return start + (end - start) * progress

    def problems(self) -> list[str]:
        """Every broken rule as `field=value: rule`; subclasses extend the list."""
        found = []
        if self.total_steps is not None and self.total_steps < 1:
            found.append(f"total_steps={self.total_steps}: must be at least 1")
        if self.start_weight_decay < 0:
            found.append(f"start_weight_decay={self.start_weight_decay}: must not be negative")
        if self.end_weight_decay is not None and self.end_weight_decay < 0:
            found.append(f"end_weight_decay={self.end_weight_decay}: must not be negative")
        found += _weight_decay_style_problems(self)
        return found


def _weight_decay_style_problems(schedule: Schedule) -> list[str]:
    style = schedule.weight_decay_incr_style
    legal = get_args(WeightDecayStyle)
    if style not in legal:
        return [f"weight_decay_incr_style={style}: must be one of {', '.join(legal)}"]
    end = schedule.end_weight_decay
    if style == "constant":
        if end is not None and end != schedule.start_weight_decay:
            return [
                f"end_weight_decay={end}: differs from start_weight_decay={schedule.start_weight_decay} "
                "while weight_decay_incr_style=constant; use linear or cosine"
            ]
        return []
    found = []
    if end is None:
        found.append(f"weight_decay_incr_style={style}: needs end_weight_decay")
    if schedule.total_steps is None:
        found.append(f"weight_decay_incr_style={style}: needs total_steps")
    return found


@dataclass(frozen=True, kw_only=True)
class WarmupSchedule(Schedule):
    """A schedule that begins with a linear warmup of `warmup_steps` updates.

    `warmup_frac` of `total_steps`, rounded down, takes the place of `warmup_steps` where it is given.
    """

    warmup_steps: int = 0
    warmup_frac: float | None = None

    def __post_init__(self) -> None:
        if self.warmup_frac is not None and self.total_steps is not None:
            object.__setattr__(self, "warmup_steps", floor_fraction(self.total_steps, self.warmup_frac))
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


def floor_fraction(steps: int, fraction: float) -> int:
    """floor(steps * fraction); the 1e-9 keeps 0.29 * 100 = 28.999999999999996 at the 29 that was meant."""
    return math.floor(steps * fraction + 1e-9)


def lr_range_problems(lr_max: float, lr_min: float) -> list[str]:
    """Rules that every schedule between two learning rates shares."""
    found = []
    if not (math.isfinite(lr_max) and lr_max > 0):
        found.append(f"lr_max={lr_max}: must be a positive number")
    if not 0 <= lr_min <= lr_max:
        found.append(f"lr_min={lr_min}: must be between 0 and lr_max={lr_max}")
    return found


def warmup_lr(step: int, warmup_steps: int, init: float, peak: float) -> float:
    """Linear warmup from `init` at step 0 to exactly `peak` at `warmup_steps`."""
    if step >= warmup_steps:
        return peak
    return init + (peak - init) * step / warmup_steps
