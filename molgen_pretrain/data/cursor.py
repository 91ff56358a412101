"""Walking the stream of one source's sequences, from any position in it."""

from __future__ import annotations

from molgen_pretrain.data.plan import BlockPlan, EpochPlanner
from molgen_pretrain.data.position import SourcePosition
from molgen_pretrain.data.sequences import Sequences


class SequenceCursor:
    """Plans each block when it is reached. `dropped` counts the units passed over since the cursor was made.

    A block's dropped units are counted along with its sequences, in proportion, so that each counts once
    wherever a run stops and resumes.
    """

    def __init__(self, planner: EpochPlanner, position: SourcePosition, infinite: bool) -> None:
        self._planner = planner
        self._infinite = infinite
        self._epoch, self._block, self._offset = position.epoch, position.block, position.offset
        self._sequences = position.sequences
        self._plan: BlockPlan | None = None
        self.dropped = 0

    @property
    def position(self) -> SourcePosition:
        return SourcePosition(self._epoch, self._block, self._offset, self._sequences)

    @property
    def lines_passed(self) -> float:
        """Lines since the beginning of epoch 0; within a block its sequences count alike."""
        done = 0.0
        if self._offset:
            done = self._offset / len(self._current_plan()) * self._planner.lines_in_block(self._block)
        return self._epoch * self._planner.lines + self._planner.lines_before_block(self._block) + done

    def take(self, count: int) -> Sequences:
        """The next `count` sequences; fewer only at the end of a finite stream."""
        parts = []
        taken = 0
        while taken < count and (self._infinite or self._epoch == 0):
            plan = self._current_plan()
            # An offset from elsewhere may lie beyond this block: the rest of it counts in the next one.
            end = max(min(self._offset + count - taken, len(plan)), self._offset)
            if self._offset < len(plan):
                parts.append(plan.sequences.slice(self._offset, end))
                self.dropped += plan.dropped * end // len(plan) - plan.dropped * self._offset // len(plan)
                taken += end - self._offset
            elif not len(plan):
                self.dropped += plan.dropped
            self._offset = end
            if self._offset >= len(plan):
                self._leave_block(self._offset - len(plan))
        self._sequences += taken
        return Sequences.joined(parts)

    def _current_plan(self) -> BlockPlan:
        if self._plan is None:
            self._plan = self._planner.plan_block(self._epoch, self._block)
        return self._plan

    def _leave_block(self, offset: int) -> None:
        self._plan = None
        self._offset = offset
        self._block += 1
        if self._block >= self._planner.blocks:
            self._block = 0
            self._epoch += 1
