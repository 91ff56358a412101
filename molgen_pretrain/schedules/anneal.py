"""Schedules that fall from the end of the warmup on: cosine, linear and inverse square root."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from molgen_pretrain.schedules.base import Phase, Piece, final_piece
from molgen_pretrain.schedules.shapes import DecayShape, decay_lr
from molgen_pretrain.schedules.spellings import also_spelled
from molgen_pretrain.schedules.warmup import WarmupSchedule, lr_range_problems, warmup_init_problems, warmup_lr


@dataclass(frozen=True, kw_only=True)
class Anneal(WarmupSchedule):
    """Linear warmup from `warmup_init` to `lr_max`, a decay up to step `decay_steps`, then `min_lr`.

    `decay_steps` is a step of the run, counted from 0 like Megatron-LM's lr_decay_iters, not a length; None is
    `total_steps`. The constructor also takes `lr_min` for `min_lr`.
    """

    min_lr: float = 0.0
    warmup_init: float = 0.0
    decay_steps: int | None = None

    @property
    def lr_min(self) -> float:
        """`min_lr` under the name that the other schedules have."""
        return self.min_lr

    @cached_property
    def decay_end(self) -> int | None:
        """The step at which the decay ends; None: never."""
        return self.total_steps if self.decay_steps is None else self.decay_steps

    def piece(self, step: int) -> Piece:
        if step < self.warmup_steps:
            return self.warmup_piece()
        end = self.decay_end
        if end is None:
            return Piece(Phase.DECAY, self.warmup_steps, None, self.warmup_steps, math.inf)
        if step > end:
            return final_piece(end + 1)
        return Piece(Phase.DECAY, self.warmup_steps, end, self.warmup_steps, end)

    def problems(self) -> list[str]:
        found = super().problems() + lr_range_problems(self.lr_max, self.min_lr, min_name="min_lr")
        found += warmup_init_problems(self.warmup_init, self.lr_max)
        if self.decay_steps is not None and self.decay_steps < 1:
            found.append(f"decay_steps={self.decay_steps}: must be at least 1")
        elif self.decay_end is not None and self.warmup_steps >= self.decay_end:
            found.append(
                f"warmup_steps={self.warmup_steps}: must end before the decay does, at step {self.decay_end} "
                "(decay_steps, or total_steps where that is not given)"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class _ToFloor(Anneal):
    """An anneal of a given shape, which has to end somewhere."""

    shape: ClassVar[DecayShape]  # also what users call it

    @property
    def milestones(self) -> tuple[int, ...]:
        end = self.decay_end
        assert end is not None  # problems() demands it
        return (end,) if self.total_steps is None or end <= self.total_steps else ()

    def lr(self, step: int) -> float:
        if step < self.warmup_steps:
            return warmup_lr(step, self.warmup_steps, self.warmup_init, self.lr_max)
        return decay_lr(self.shape, self.phase_progress(step), self.lr_max, self.min_lr)

    def describe(self) -> str:
        return (
            f"{self.shape}: warmup {self.warmup_steps} steps to {self.lr_max:g}, "
            f"then down to {self.min_lr:g} at step {self.decay_end}"
        )

    def problems(self) -> list[str]:
        found = super().problems()
        if self.decay_end is None:
            found.append("decay_steps=None: give decay_steps or total_steps")
        return found


@also_spelled(lr_min="min_lr")
@dataclass(frozen=True, kw_only=True)
class Cosine(_ToFloor):
    """Half a cosine from `lr_max` at the end of the warmup to `min_lr` at `decay_steps` (arXiv 1608.03983)."""

    shape: ClassVar[DecayShape] = "cosine"


@also_spelled(lr_min="min_lr")
@dataclass(frozen=True, kw_only=True)
class Linear(_ToFloor):
    """A straight line from `lr_max` at the end of the warmup to `min_lr` at `decay_steps`.

    With `min_lr=0` the linear-to-zero baseline of Bergsma et al. 2025, arXiv 2502.15938.
    """

    shape: ClassVar[DecayShape] = "linear"


@also_spelled(lr_min="min_lr")
@dataclass(frozen=True, kw_only=True)
class InverseSqrt(Anneal):
    """lr_max * sqrt(warmup_steps / step), never below `min_lr`; it jumps to `min_lr` after `decay_steps`.

    With `timescale` t it is lr_max * sqrt(t / (t + steps since the warmup)), as in Hugging Face transformers;
    None is `warmup_steps`, at least 1, as in Megatron-LM. The two agree where there is a warmup.
    """

    timescale: int | None = None

    def lr(self, step: int) -> float:
        if step < self.warmup_steps:
            return warmup_lr(step, self.warmup_steps, self.warmup_init, self.lr_max)
        if self.decay_end is not None and step > self.decay_end:
            return self.min_lr
        if self.timescale is None:
            ratio = max(self.warmup_steps, 1) / max(step, 1)
        else:
            ratio = self.timescale / (self.timescale + step - self.warmup_steps)
        return max(self.min_lr, self.lr_max * math.sqrt(ratio))

    def describe(self) -> str:
        timescale = self.timescale or max(self.warmup_steps, 1)
        end = "" if self.decay_end is None else f" up to step {self.decay_end}"
        return (
            f"inverse_sqrt: warmup {self.warmup_steps} steps to {self.lr_max:g}, "
            f"then with timescale {timescale}{end}, not below {self.min_lr:g}"
        )

    def problems(self) -> list[str]:
        found = super().problems()
        if self.timescale is not None and self.timescale < 1:
            found.append(f"timescale={self.timescale}: must be at least 1")
        return found
