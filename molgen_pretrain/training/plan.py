"""What a run has done, and when it does what."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass
class Progress:
    """What a checkpoint must bring back besides tensors."""

    step: int = 0  # finished updates
    tokens: int = 0  # trained on, all ranks
    sequences: int = 0
    truncated_units: int = 0
    dropped_units: int = 0
    anomalies: int = 0  # batches left out because their update would have done harm
    validation_is_due: bool = False  # of `step`: a stop came before it, or cut it short
    position: dict[str, Any] = field(default_factory=dict)  # of the data, after the last global batch
    losses: list[float] = field(default_factory=list)  # logged ones that an adaptive schedule still looks at
    recent: list[tuple[float, float]] = field(default_factory=list)  # loss, gradient norm: what is usual, for spikes

    def state(self) -> dict[str, Any]:
        return asdict(self)

    def go_back_to(self, earlier: Progress) -> None:
        """Become `earlier`, except for the place in the data and the anomalies counted."""
        for key, value in vars(replace(earlier, position=self.position, anomalies=self.anomalies)).items():
            setattr(self, key, value)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """When things happen, in updates."""

    steps: int
    stop_after: int | None  # a pause before `steps`, where the run is to be gone on with later
    accumulation_steps: int
    log_freq: int
    validation_freq: int  # 0: never
    checkpoint_interval: int  # 0: never
    snapshot_lrs: tuple[float, ...]  # a checkpoint is kept where a decay first reaches one of these

    @property
    def last_step(self) -> int:
        """The update that this process ends with."""
        return self.steps if self.stop_after is None else min(self.steps, self.stop_after)

    def logs_at(self, step: int, milestones: Collection[int]) -> bool:
        """Besides every log_freq-th: the first, the last, and both sides of each milestone."""
        return step % self.log_freq == 0 or step in (1, self.steps) or step in milestones or step - 1 in milestones

    def validates_at(self, step: int, milestones: Collection[int]) -> bool:
        return self._due(step, self.validation_freq, milestones)

    def saves_at(self, step: int, kept: Collection[int]) -> bool:
        return self._due(step, self.checkpoint_interval, kept)

    def _due(self, step: int, interval: int, besides: Collection[int]) -> bool:
        if interval == 0:
            return False
        return step % interval == 0 or step == self.steps or step in besides
