"""WSDS: warmup, stable, decay to each milestone, and back to stable (WSD-S, arXiv 2410.05192)."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, get_args

from molgen_pretrain.schedules.base import Phase, Piece, Window, final_piece
from molgen_pretrain.schedules.shapes import DecayShape, canonical_shape, decay_lr, shape_problems
from molgen_pretrain.schedules.warmup import WarmupSchedule, floor_fraction, lr_range_problems, warmup_lr

DecayFracOf = Literal["target", "period"]


@dataclass(frozen=True, kw_only=True)
class WSDS(WarmupSchedule):
    """Warmup 0 -> lr_max, stable, and a decay that ends exactly at lr_min at every milestone T.

    lr(warmup_steps) = lr_max, lr(T) = lr_min, lr(T + 1) = lr_max, and lr_min after the last milestone. A
    decay is `decay_steps` long, or floor(base * decay_frac) (at least 1) where base is the milestone's step
    (`decay_frac_of="target"`) or its distance to the one before (`"period"`). It never starts before the
    warmup's end or the previous milestone.

    Milestones are `checkpoints`, in steps; where that is empty, `checkpoints_frac` of total_steps, rounded
    up, so that a plan scales with the run; where both are empty, total_steps alone.

    Source: WSD-S of Wen et al. 2024, arXiv 2410.05192, with one decay per milestone.
    """

    lr_min: float
    checkpoints: tuple[int, ...] = ()
    checkpoints_frac: tuple[float, ...] = ()
    decay_frac: float | None = 0.1
    decay_steps: int | None = None
    decay_frac_of: DecayFracOf = "target"
    decay_shape: DecayShape = "linear"

    def __post_init__(self) -> None:
        # YAML and JSON give lists; a frozen dataclass that is compared and hashed wants a tuple.
        object.__setattr__(self, "checkpoints", tuple(self.checkpoints))
        object.__setattr__(self, "checkpoints_frac", tuple(self.checkpoints_frac))
        object.__setattr__(self, "decay_shape", canonical_shape(self.decay_shape))
        super().__post_init__()

    @cached_property
    def milestones(self) -> tuple[int, ...]:
        if self.checkpoints or self.total_steps is None:
            return self.checkpoints
        fractions = self.checkpoints_frac or (1.0,)
        return tuple(sorted({math.ceil(self.total_steps * f - 1e-9) for f in fractions}))

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        """One decay window per milestone, ascending, never overlapping."""
        windows, previous = [], 0
        for target in self.milestones:
            length = self.decay_length(target, previous)
            windows.append(Window(max(self.warmup_steps, previous, target - length), target))
            previous = target
        return tuple(windows)

    def decay_length(self, target: int, previous: int) -> int:
        """Steps that the decay to milestone `target` asks for, whose predecessor is `previous` (0: none)."""
        if self.decay_steps is not None:
            return self.decay_steps
        assert self.decay_frac is not None  # problems() demands one of the two
        base = target if self.decay_frac_of == "target" else target - previous
        return max(1, floor_fraction(base, self.decay_frac))

    def lr(self, step: int) -> float:
        if step < self.warmup_steps:
            return warmup_lr(step, self.warmup_steps, 0.0, self.lr_max)
        piece = self.piece(step)
        if piece.phase is Phase.STABLE:
            return self.lr_max
        return decay_lr(self.decay_shape, piece.progress(step), self.lr_max, self.lr_min)

    def piece(self, step: int) -> Piece:
        if step < self.warmup_steps:
            return self.warmup_piece()
        i = bisect_left(self.milestones, step)  # the first milestone at or after the step
        previous = self.milestones[i - 1] if i > 0 else 0
        if i == len(self.milestones):
            return final_piece(previous + 1)
        start, end = self.windows[i]
        if step > start:
            return Piece(Phase.DECAY, start + 1, end, start, end)
        began = max(self.warmup_steps, previous + 1) if i > 0 else self.warmup_steps
        return Piece(Phase.STABLE, began, start, began, start)

    def describe(self) -> str:
        windows = ", ".join(f"{start}-{end}" for start, end in self.windows)
        return (
            f"wsds: warmup {self.warmup_steps} steps to {self.lr_max:g}, "
            f"{self.decay_shape} decays to {self.lr_min:g} over steps {windows}"
        )

    def problems(self) -> list[str]:
        found = super().problems() + lr_range_problems(self.lr_max, self.lr_min)
        found += shape_problems(self.decay_shape, self.lr_min)
        return found + self._milestone_problems() + self._length_problems()

    def _milestone_problems(self) -> list[str]:
        if any(not 0 < f <= 1 for f in self.checkpoints_frac):
            return [f"checkpoints_frac={list(self.checkpoints_frac)}: fractions must be in (0, 1]"]
        shown = f"checkpoints={list(self.checkpoints)}"
        if not self.milestones:
            return [f"{shown}: give at least one milestone step, or total_steps"]
        found = []
        if any(b <= a for a, b in pairwise(self.milestones)):
            found.append(f"{shown}: milestones must be strictly increasing")
        if min(self.milestones) <= self.warmup_steps:
            found.append(
                f"warmup_steps={self.warmup_steps}: must end before the first milestone, step {min(self.milestones)}"
            )
        if self.total_steps is not None and max(self.milestones) > self.total_steps:
            beyond = [c for c in self.milestones if c > self.total_steps]
            found.append(
                f"{shown}: {beyond} beyond the run's {self.total_steps} steps; "
                "raise training.steps or drop the milestone"
            )
        return found

    def _length_problems(self) -> list[str]:
        found = []
        if self.decay_steps is None and self.decay_frac is None:
            found.append("decay_frac=null: give decay_frac or decay_steps")
        if self.decay_steps is not None and self.decay_steps < 1:
            found.append(f"decay_steps={self.decay_steps}: must be at least 1")
        if self.decay_frac is not None and not 0 < self.decay_frac <= 1:
            found.append(f"decay_frac={self.decay_frac}: must be in (0, 1]")
        if self.decay_frac_of not in get_args(DecayFracOf):
            found.append(f"decay_frac_of={self.decay_frac_of}: must be target or period")
        return found
