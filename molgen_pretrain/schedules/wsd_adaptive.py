"""WSD that starts its decay by itself when the loss has stopped falling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from molgen_pretrain.schedules.base import DECISION, Piece
from molgen_pretrain.schedules.wsd import WSD, WarmupDecay


@dataclass(frozen=True, kw_only=True)
class WSDAdaptive(WarmupDecay):
    """WSD whose decay starts at `decay_start`, a decision made while training.

    `decides` makes it: not before `min_stable_steps` at `lr_max`, once the loss has improved by less than
    `threshold` over the last `window` logged losses, and at the latest so that the decay ends with
    `total_steps`. Until then (`decay_start` None) the learning rate is that of the latest start, so the
    function of the step that ran is the same before and after the decision, and a checkpoint that stores
    `decay_start` reproduces it.
    """

    window: int = 20
    threshold: float = 0.005
    min_stable_steps: int = 0
    decay_start: int | None = field(default=None, metadata=DECISION)

    @property
    def latest_start(self) -> int:
        """The last step at which a decay can start that ends with the run."""
        assert self.total_steps is not None  # problems() demands both
        assert self.decay_length is not None
        return self.total_steps - self.decay_length

    @cached_property
    def plan(self) -> WSD:
        """The WSD that holds as long as nothing else is decided."""
        start = self.latest_start if self.decay_start is None else self.decay_start
        return WSD(
            lr_max=self.lr_max,
            lr_min=self.lr_min,
            warmup_steps=self.warmup_steps,
            warmup_init=self.warmup_init,
            stable_steps=start - self.warmup_steps,
            decay_steps=self.decay_length,
            decay_shape=self.decay_shape,
            total_steps=self.total_steps,
        )

    @property
    def milestones(self) -> tuple[int, ...]:
        return self.plan.milestones

    def lr(self, step: int) -> float:
        return self.plan.lr(step)

    def piece(self, step: int) -> Piece:
        return self.plan.piece(step)

    def decides(self, losses: Sequence[float], step: int) -> bool:
        """Whether the decay starts after update `step`, given the losses logged so far, oldest first.

        To be asked at logged steps; the caller goes on with `with_decay_start(step)`. False where it is decided.
        """
        if self.decay_start is not None:
            return False
        if step >= self.latest_start:
            return True
        if step < self.warmup_steps + self.min_stable_steps:
            return False
        if len(losses) < self.window:
            return False
        improvement = relative_improvement(losses[-self.window :])
        return improvement is not None and improvement < self.threshold

    def with_decay_start(self, step: int) -> WSDAdaptive:
        """The schedule with the decision that the decay starts at `step`, or at the latest start if that is past."""
        return replace(self, decay_start=min(step, self.latest_start))

    def describe(self) -> str:
        when = "at the latest" if self.decay_start is None else "as decided"
        return f"wsd_adaptive: {self.plan.describe().removeprefix('wsd: ')} {when}"

    def problems(self) -> list[str]:
        found = super().problems()
        if self.total_steps is None:
            found.append("total_steps=None: give it; the decay ends with the run at the latest")
        if self.decay_steps is None and self.decay_frac is None:
            found.append("decay_frac=None: give decay_frac or decay_steps")
        if self.window < 2:
            found.append(f"window={self.window}: must be at least 2 logged losses")
        if not math.isfinite(self.threshold):
            found.append(f"threshold={self.threshold}: must be a number, such as 0.005")
        if self.min_stable_steps < 0:
            found.append(f"min_stable_steps={self.min_stable_steps}: must not be negative")
        return found or self.room_problems() or self._start_problems()

    def _start_problems(self) -> list[str]:
        start = self.decay_start
        if start is None or self.warmup_steps <= start <= self.latest_start:
            return []
        return [
            f"decay_start={start}: must be between the warmup's end, step {self.warmup_steps}, and the latest start, "
            f"step {self.latest_start}; null leaves it to the loss"
        ]


def relative_improvement(losses: Sequence[float]) -> float | None:
    """How much lower the mean of the newer half is than that of the older half, as a share of the latter.

    With an odd number the middle one counts for neither. None where a loss is not finite, or there are no two.
    """
    half = len(losses) // 2
    if half == 0:
        return None
    older, newer = sum(losses[:half]) / half, sum(losses[-half:]) / half
    if not (math.isfinite(older) and math.isfinite(newer)) or older == 0:
        return None
    return (older - newer) / abs(older)
