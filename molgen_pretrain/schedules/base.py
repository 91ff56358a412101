"""What every schedule offers, and the weight decay that runs beside the learning rate."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Literal, NamedTuple, get_args

from molgen_pretrain.errors import UserError

WeightDecayStyle = Literal["constant", "linear", "cosine"]

# Metadata of fields. NOT_STORED: says what a resume does, not what the curve is, so no checkpoint keeps it.
# DECISION: found while training rather than chosen; a config that leaves it open does not contradict it.
NOT_STORED = {"stored": False}
DECISION = {"decision": True}


class Phase(str, Enum):
    """Where in the plan a step lies; the value is what logs and metrics show."""

    WARMUP = "warmup"
    STABLE = "stable"
    DECAY = "decay"
    FINAL = "final"


class Window(NamedTuple):
    """A decay: the last step at the height it falls from, and the step at which it has arrived."""

    start: int
    end: int


class PhaseSpan(NamedTuple):
    """Updates `first` to `last`, both included, that lie in one phase."""

    phase: Phase
    first: int
    last: int


class Piece(NamedTuple):
    """A stretch of the plan in one phase: steps `first` to `last`, or for ever where `last` is None.

    Progress is 0 at step `zero` and 1 at step `one`; both may lie outside the stretch or between two steps.
    """

    phase: Phase
    first: int
    last: int | None
    zero: float
    one: float

    def progress(self, step: int) -> float:
        """How far through the stretch `step` is, in [0, 1]; 0 throughout where it has no end."""
        if step >= self.one:
            return 1.0
        if step <= self.zero or self.one == math.inf:
            return 0.0
        return (step - self.zero) / (self.one - self.zero)


def final_piece(first: int) -> Piece:
    """From `first` on nothing changes any more."""
    return Piece(Phase.FINAL, first, None, first, first)


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
    linear or cosine in the sense of Megatron-LM's `weight_decay_incr_style`. `decay_beta2` is Adam's beta2
    from the first step of a decay on (None: never changed).

    Raises ScheduleError at construction, with every broken rule in one message.
    """

    total_steps: int | None = None
    start_weight_decay: float = 0.0
    end_weight_decay: float | None = None
    weight_decay_incr_style: WeightDecayStyle = "constant"
    decay_beta2: float | None = None

    def __post_init__(self) -> None:
        if found := self.problems():
            raise ScheduleError(type(self).__name__, found)

    @abstractmethod
    def lr(self, step: int) -> float:
        """Learning rate of update `step`; defined for every step >= 0, exact at the boundaries."""

    @abstractmethod
    def piece(self, step: int) -> Piece:
        """The stretch of the plan that `step` lies in."""

    @abstractmethod
    def describe(self) -> str:
        """The plan in one line, for the log."""

    @property
    def milestones(self) -> tuple[int, ...]:
        """Steps after which the weights are finished models and worth keeping for good."""
        return ()

    def phase(self, step: int) -> Phase:
        """Phase that update `step` belongs to."""
        return self.piece(step).phase

    def phase_progress(self, step: int) -> float:
        """How far through its phase update `step` is, in [0, 1]; the argument of the decay's shape in a decay."""
        return self.piece(step).progress(step)

    def phase_spans(self, last_step: int) -> tuple[PhaseSpan, ...]:
        """The phases of updates 1 to `last_step`, each update in exactly one span; a restart begins a new span."""
        return tuple(
            PhaseSpan(p.phase, max(1, p.first), last_step if p.last is None else min(p.last, last_step))
            for p in self._pieces(last_step)
        )

    def decay_windows(self, last_step: int) -> tuple[Window, ...]:
        """The decays of updates 1 to `last_step`, without the time that a finished one is held at its end.

        `end - start` is the number of updates below the height that the decay starts from.
        """
        decays = [p for p in self._pieces(last_step) if p.phase is Phase.DECAY]
        return tuple(Window(max(0, math.floor(p.zero)), int(min(p.one, last_step))) for p in decays)

    def weight_decay(self, step: int) -> float:
        """Weight decay of update `step`."""
        start, end = self.start_weight_decay, self.end_weight_decay
        if self.weight_decay_incr_style == "constant" or end is None or self.total_steps is None:
            return start
        if step >= self.total_steps:
            return end
        progress = step / self.total_steps
        if self.weight_decay_incr_style == "cosine":
            progress = 0.5 * (math.cos(math.pi * (1.0 - progress)) + 1.0)
        return start + (end - start) * progress

    def beta2(self, step: int) -> float | None:
        """Adam's beta2 of update `step`; None: the optimizer's own.

        A higher beta2 while the learning rate falls lowers the final loss (Dremov et al. 2025, arXiv 2508.01483).
        """
        return self.decay_beta2 if self.phase(step) in (Phase.DECAY, Phase.FINAL) else None

    def problems(self) -> list[str]:
        """Every broken rule as `field=value: rule`; subclasses extend the list."""
        found = []
        if self.total_steps is not None and self.total_steps < 1:
            found.append(f"total_steps={self.total_steps}: must be at least 1")
        for name in ("start_weight_decay", "end_weight_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                found.append(f"{name}={value}: must be a number of at least 0")
        if self.decay_beta2 is not None and not 0 <= self.decay_beta2 < 1:
            found.append(f"decay_beta2={self.decay_beta2}: must be in [0, 1)")
        return found + _weight_decay_style_problems(self)

    def _pieces(self, last_step: int) -> Iterator[Piece]:
        step: int | None = 1
        while step is not None and step <= last_step:
            piece = self.piece(step)
            yield piece
            step = None if piece.last is None else piece.last + 1


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
