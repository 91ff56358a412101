"""WSD: warmup, stable, one decay; open-ended where no end is planned yet (MiniCPM, arXiv 2404.06395)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

from molgen_pretrain.schedules.base import Phase, Piece, ScheduleError, Window
from molgen_pretrain.schedules.shapes import DecayShape, canonical_shape, decay_lr, shape_problems
from molgen_pretrain.schedules.warmup import (
    WarmupSchedule,
    floor_fraction,
    lr_range_problems,
    warmup_init_problems,
    warmup_lr,
)


@dataclass(frozen=True, kw_only=True)
class WarmupDecay(WarmupSchedule):
    """What WSD and its adaptive form share: the two heights, and the length and shape of the decay.

    The warmup starts at `warmup_init` (None: `lr_min`). The decay is `decay_steps` long; where that is not
    given, `decay_frac` of `total_steps`, rounded down, at least 1.
    """

    lr_min: float
    warmup_init: float | None = None
    decay_steps: int | None = None
    decay_frac: float | None = None
    decay_shape: DecayShape = "linear"

    def __post_init__(self) -> None:
        object.__setattr__(self, "decay_shape", canonical_shape(self.decay_shape))
        super().__post_init__()

    @property
    def decay_length(self) -> int | None:
        """Updates that the decay takes; None: no decay is planned."""
        if self.decay_steps is not None:
            return self.decay_steps
        if self.decay_frac is None or self.total_steps is None:
            return None
        return max(1, floor_fraction(self.total_steps, self.decay_frac))

    def problems(self) -> list[str]:
        found = super().problems() + lr_range_problems(self.lr_max, self.lr_min)
        if self.warmup_init is not None:
            found += warmup_init_problems(self.warmup_init, self.lr_max)
        found += shape_problems(self.decay_shape, self.lr_min)
        if self.decay_steps is not None and self.decay_steps < 1:
            found.append(f"decay_steps={self.decay_steps}: must be at least 1")
        if self.decay_frac is not None:
            if not 0 < self.decay_frac <= 1:
                found.append(f"decay_frac={self.decay_frac}: must be in (0, 1]")
            if self.total_steps is None:
                found.append(f"decay_frac={self.decay_frac}: needs total_steps; or give decay_steps")
        return found

    def room_problems(self) -> list[str]:
        """A decay that ends with the run has to start after the warmup."""
        length, total = self.decay_length, self.total_steps
        if length is None or total is None or total - length >= self.warmup_steps:
            return []
        return [
            f"decay_steps={length}: the run of {total} steps has no room for it after the warmup of "
            f"{self.warmup_steps}; at most {max(0, total - self.warmup_steps)}"
        ]


@dataclass(frozen=True, kw_only=True)
class WSD(WarmupDecay):
    """Linear warmup to `lr_max`, `stable_steps` there, a decay to `lr_min`, then `lr_min`.

    lr(warmup_steps + stable_steps) is still `lr_max` and the first step of the decay phase, which lasts on
    when the decay has arrived. Where `stable_steps` is None the decay ends with `total_steps`, or, where that
    is None or no decay is given, the stable phase is open-ended: it lasts until `begin_decay`.

    `blend_steps` makes the entry gradual: for so many steps the rate is stable * (1 - b) + decay * b, b rising
    linearly from 0 to 1.
    """

    stable_steps: int | None = None
    blend_steps: int = 0

    @cached_property
    def window(self) -> Window | None:
        """The planned decay; None: open-ended."""
        length = self.decay_length
        if length is None:
            return None
        if self.stable_steps is not None:
            start = self.warmup_steps + self.stable_steps
        elif self.total_steps is not None:
            start = self.total_steps - length
        else:
            return None
        return Window(start, start + length)

    @property
    def milestones(self) -> tuple[int, ...]:
        window = self.window
        if window is None or (self.total_steps is not None and window.end > self.total_steps):
            return ()
        return (window.end,)

    def lr(self, step: int) -> float:
        if step < self.warmup_steps:
            init = self.lr_min if self.warmup_init is None else self.warmup_init
            return warmup_lr(step, self.warmup_steps, init, self.lr_max)
        piece = self.piece(step)
        if piece.phase is Phase.STABLE:
            return self.lr_max
        decayed = decay_lr(self.decay_shape, piece.progress(step), self.lr_max, self.lr_min)
        since = step - piece.first
        if since >= self.blend_steps:
            return decayed
        blend = since / self.blend_steps
        return self.lr_max * (1.0 - blend) + decayed * blend

    def piece(self, step: int) -> Piece:
        if step < self.warmup_steps:
            return self.warmup_piece()
        if self.window is None:
            return Piece(Phase.STABLE, self.warmup_steps, None, self.warmup_steps, math.inf)
        start, end = self.window
        if step < start:
            return Piece(Phase.STABLE, self.warmup_steps, start - 1, self.warmup_steps, start)
        return Piece(Phase.DECAY, start, None, start, end)

    def extend_stable(self, steps: int) -> WSD:
        """The same plan with a stable phase that is `steps` longer; `total_steps` grows where that needs it.

        An open-ended stable phase has no end to move. Raises ScheduleError where less than nothing would be left.
        """
        if self.window is None:
            return self
        stable = self.window.start - self.warmup_steps + steps
        return self._with_decay(stable_steps=stable, decay_steps=self.window.end - self.window.start)

    def begin_decay(self, at: int, decay_steps: int | None = None) -> WSD:
        """The plan whose decay starts at step `at` and takes `decay_steps` (None: as many as planned).

        lr(at) is `lr_max`, lr(at + decay_steps) is `lr_min`. Raises ScheduleError inside the warmup, and where
        no length is known.
        """
        length = self.decay_length if decay_steps is None else decay_steps
        if length is None:
            raise ScheduleError("WSD", ["decay_steps=None: no decay was planned; give its length"])
        if at < self.warmup_steps:
            raise ScheduleError("WSD", [f"at={at}: a decay starts after the warmup of {self.warmup_steps} steps"])
        return self._with_decay(stable_steps=at - self.warmup_steps, decay_steps=length)

    def describe(self) -> str:
        if self.window is None:
            decay = "then open-ended"
        else:
            decay = f"{self.decay_shape} decay to {self.lr_min:g} over steps {self.window.start}-{self.window.end}"
        blend = f", blended over {self.blend_steps}" if self.blend_steps else ""
        return f"wsd: warmup {self.warmup_steps} steps to {self.lr_max:g}, {decay}{blend}"

    def problems(self) -> list[str]:
        found = super().problems()
        if self.stable_steps is None:
            found += self.room_problems()
        elif self.stable_steps < 0:
            found.append(f"stable_steps={self.stable_steps}: must not be negative; null is open-ended")
        elif self.decay_steps is None and self.decay_frac is None:
            found.append(f"stable_steps={self.stable_steps}: a decay follows; give decay_steps or decay_frac")
        length = self.decay_length
        if self.blend_steps < 0 or (length is not None and self.blend_steps > length):
            found.append(f"blend_steps={self.blend_steps}: must be between 0 and the length of the decay, {length}")
        return found

    def _with_decay(self, *, stable_steps: int, decay_steps: int) -> WSD:
        end = self.warmup_steps + stable_steps + decay_steps
        total = None if self.total_steps is None else max(self.total_steps, end)
        return replace(self, stable_steps=stable_steps, decay_steps=decay_steps, decay_frac=None, total_steps=total)
