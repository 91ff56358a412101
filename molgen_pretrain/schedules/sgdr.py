"""SGDR: cosine decays with warm restarts (Loshchilov and Hutter 2017, arXiv 1608.03983)."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from molgen_pretrain.schedules.base import Phase, Piece
from molgen_pretrain.schedules.shapes import decay_lr
from molgen_pretrain.schedules.warmup import WarmupSchedule, lr_range_problems, warmup_init_problems, warmup_lr

_BEYOND_ANY_RUN = 1 << 1100  # the length of a cycle whose length no float can hold
_MOST_LENGTHS = 50_000  # different cycle lengths; each is longer than the one before, so they last for 1.25e9 steps


class Cycle(NamedTuple):
    """Cycle `number` (from 0), `position` steps after its restart, of `length` steps."""

    number: int
    position: int
    length: int


class _Block(NamedTuple):
    """Consecutive cycles of one length, in steps after the warmup: numbers `first` up to `after`."""

    start: int
    end: int
    first: int
    after: int
    length: int


@dataclass(frozen=True, kw_only=True)
class SGDR(WarmupSchedule):
    """Linear warmup, then cosine decays from `lr_max` towards `lr_min`, each followed by a restart at `lr_max`.

    Cycle i has int(cycle_length * cycle_mult**i) steps, and the step of a restart belongs to the new cycle.
    Where `cycle_length` is not given it is the smallest with which `cycles` cycles fill the run to its end.
    The warmup starts at `warmup_init` (None: `lr_min`). The last step of each cycle is a milestone: the
    learning rate is lowest there (it would reach `lr_min` at the step that restarts). With `cycles` the last
    step of the run ends the last cycle.
    """

    lr_min: float
    cycle_length: int | None = None
    cycles: int | None = None
    cycle_mult: float = 1.0
    warmup_init: float | None = None

    @cached_property
    def first_length(self) -> int:
        """Steps of the first cycle."""
        if self.cycle_length is not None:
            return self.cycle_length
        assert self.cycles is not None  # problems() demands one of the two, and total_steps with this one
        assert self.total_steps is not None
        steps = self.total_steps - self.warmup_steps + 1  # the warmup's last and the run's last step both count
        lengths = range(1, steps + 1)
        return lengths[bisect_left(lengths, True, key=lambda length: self._fills(length, steps))]

    def _fills(self, first_length: int, steps: int) -> bool:
        """Whether `cycles` cycles last for `steps`."""
        assert self.cycles is not None
        lengths = (_cycle_length(first_length, self.cycle_mult, i) for i in range(self.cycles))
        return any(total >= steps for total in accumulate(lengths))

    @cached_property
    def milestones(self) -> tuple[int, ...]:
        if self.total_steps is None:
            return ()
        spans = self.phase_spans(self.total_steps)
        ends = (span.last for span in spans if span.phase is Phase.DECAY)
        return tuple(end for end in ends if self.cycle_length is None or self.piece(end).last == end)

    def cycle_info(self, step: int) -> Cycle:
        """The cycle that `step` lies in; the warmup counts as the start of the first.

        Cycles stop growing after 50,000 different lengths, which no run of less than 1.25e9 steps gets to see.
        """
        position = max(0, step - self.warmup_steps)
        if self.cycle_mult == 1.0:
            number, position = divmod(position, self.first_length)
            return Cycle(number, position, self.first_length)
        while self._blocks[-1].end <= position and len(self._blocks) < _MOST_LENGTHS:
            self._blocks.append(self._block(start=self._blocks[-1].end, first=self._blocks[-1].after))
        block = self._blocks[bisect_right(self._blocks, position, key=lambda b: b.start) - 1]
        number, position = divmod(position - block.start, block.length)
        return Cycle(block.first + number, position, block.length)

    def lr(self, step: int) -> float:
        if step < self.warmup_steps:
            init = self.lr_min if self.warmup_init is None else self.warmup_init
            return warmup_lr(step, self.warmup_steps, init, self.lr_max)
        return decay_lr("cosine", self.phase_progress(step), self.lr_max, self.lr_min)

    def piece(self, step: int) -> Piece:
        if step < self.warmup_steps:
            return self.warmup_piece()
        cycle = self.cycle_info(step)
        first = step - cycle.position
        return Piece(Phase.DECAY, first, first + cycle.length - 1, first, first + cycle.length)

    def describe(self) -> str:
        growth = f", each {self.cycle_mult:g} times as long as the one before" if self.cycle_mult > 1 else ""
        return (
            f"sgdr: warmup {self.warmup_steps} steps to {self.lr_max:g}, cosine cycles down to {self.lr_min:g} "
            f"of {self.first_length} steps{growth}"
        )

    def problems(self) -> list[str]:
        found = super().problems() + lr_range_problems(self.lr_max, self.lr_min)
        if self.warmup_init is not None:
            found += warmup_init_problems(self.warmup_init, self.lr_max)
        if not 1 <= self.cycle_mult < math.inf:
            found.append(f"cycle_mult={self.cycle_mult}: must be a number of at least 1")
        return found + self._length_problems()

    def _length_problems(self) -> list[str]:
        if self.cycle_length is not None:
            return [] if self.cycle_length >= 1 else [f"cycle_length={self.cycle_length}: must be at least 1"]
        if self.cycles is None:
            return ["cycle_length=None: give cycle_length, or cycles and total_steps"]
        if not 1 <= self.cycles <= 1000:
            return [f"cycles={self.cycles}: must be between 1 and 1000; for more give cycle_length"]
        if self.total_steps is None:
            return [f"cycles={self.cycles}: needs total_steps; or give cycle_length"]
        if self.warmup_steps >= self.total_steps:
            return [f"warmup_steps={self.warmup_steps}: must end before the run does, at step {self.total_steps}"]
        return []

    @cached_property
    def _blocks(self) -> list[_Block]:
        """The blocks looked at so far: a memo, so that a long run does not count its cycles at every step."""
        return [self._block(start=0, first=0)]

    def _block(self, *, start: int, first: int) -> _Block:
        """With a cycle_mult barely above 1, int() keeps many cycles at one length: they make one block."""
        length = _cycle_length(self.first_length, self.cycle_mult, first)
        after = first + 1
        if length < _BEYOND_ANY_RUN:
            after = max(after, math.ceil(math.log((length + 1) / self.first_length) / math.log(self.cycle_mult)))
            # The logarithm may be off by rounding; the lengths themselves decide.
            while _cycle_length(self.first_length, self.cycle_mult, after) <= length:
                after += 1
            while after - 1 > first and _cycle_length(self.first_length, self.cycle_mult, after - 1) > length:
                after -= 1
        return _Block(start, start + (after - first) * length, first, after, length)


def _cycle_length(first_length: int, mult: float, number: int) -> int:
    try:
        return int(first_length * mult**number)
    except OverflowError:
        return _BEYOND_ANY_RUN
