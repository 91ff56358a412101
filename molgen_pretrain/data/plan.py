"""The order of training sequences, as a pure function, and positions in it.

Epoch e is the permutation of all lines keyed by (seed, e), cut into blocks of `BLOCK_LINES`; each block is
packed by itself and its sequences are emitted in an order keyed by (seed, e, block). So any block can be
planned without the ones before it, which is all that a resume needs. World size, workers and restarts do not
enter; the files, their token counts, the seed, `seq_len` and the packing settings do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from molgen_pretrain.data.line_index import LineIndex
from molgen_pretrain.data.packing import Packing, pack
from molgen_pretrain.data.permutation import FeistelPermutation, derive_key, keyed_hash
from molgen_pretrain.errors import UserError

# A packing setting: another value is another order. Large enough that a block's one partly filled sequence
# weighs nothing (0.005 % at 2,048 tokens), small enough to be planned in a tenth of a second.
BLOCK_LINES = 65536

_EPOCH_ORDER, _SEQUENCE_ORDER, _UNIT_ORDER = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the endless stream of sequences: the next one is number `offset` of a block.

    `sequences` counts those that came before since the start of training. An offset beyond the block's last
    sequence means the blocks that follow.
    """

    epoch: int = 0
    block: int = 0
    offset: int = 0
    sequences: int = 0

    def state_dict(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, int]) -> Position:
        """Raises UserError unless the state has exactly the fields, as integers from 0 up."""
        names = set(cls.__slots__)
        if set(state) != names or any(type(value) is not int or value < 0 for value in state.values()):
            raise UserError(
                f"data position {dict(state)}: it holds integers from 0 up named {', '.join(sorted(names))}"
            )
        return cls(**state)


@dataclass(frozen=True, slots=True)
class OrderSettings:
    """What decides the order besides the files and the tokenizer. Sizes in tokens and units."""

    seed: int
    seq_len: int
    shuffle_lines: bool
    lookahead_limit: int
    drop_overflow: bool


class EpochPlanner:
    """Plans single blocks of single epochs from token counts."""

    def __init__(self, index: LineIndex, settings: OrderSettings) -> None:
        self._index = index
        self._settings = settings
        self.lines = index.lines
        self.blocks = -(-index.lines // BLOCK_LINES)

    def plan_block(self, epoch: int, block: int) -> Packing:
        """The sequences of a block: `positions` are line numbers, in the order in which they are emitted."""
        lines, sizes = self._units_of_block(epoch, block)
        packing = pack(sizes, self._settings.seq_len, self._settings.lookahead_limit)
        ordered = self._order_sequences(packing, epoch, block)
        return Packing(lines[ordered.positions], ordered.bounds)

    def lines_in_block(self, block: int) -> int:
        return min(self.lines - block * BLOCK_LINES, BLOCK_LINES)

    def fingerprint(self, tokenizer_fingerprint: str) -> str:
        """A short hash that changes when the order does; the folder that the files lie in does not count."""
        meta = self._index.meta
        parts = {
            "files": [(file.path.rpartition("/")[2], file.size) for file in meta.files],
            "units_of_length": sorted(meta.units_of_length.items()),
            "tokenizer": tokenizer_fingerprint,
            "block_lines": BLOCK_LINES,
            "settings": asdict(self._settings),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def _units_of_block(self, epoch: int, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Line numbers and sizes (tokens with separator, at most seq_len) of a block's units."""
        start = block * BLOCK_LINES
        lines = np.arange(start, start + self.lines_in_block(block), dtype=np.int64)
        if self._settings.shuffle_lines:
            key = derive_key(self._settings.seed, epoch, _EPOCH_ORDER)
            lines = FeistelPermutation(self.lines, key).permute(lines)
        counts = self._index.token_counts(lines)
        most = self._settings.seq_len - 1
        usable = counts > 0
        if self._settings.drop_overflow:
            usable &= counts <= most
        return lines[usable], np.minimum(counts[usable], most) + 1

    def _order_sequences(self, packing: Packing, epoch: int, block: int) -> Packing:
        """Shuffled sequences of shuffled units, so that packing orders nothing by length.

        Without shuffling: units ascend, and so do the sequences by their first unit.
        """
        if not len(packing):
            return packing
        seed = self._settings.seed
        unit_counts = np.diff(packing.bounds)
        sequence_numbers = np.arange(len(packing), dtype=np.int64)
        if self._settings.shuffle_lines:
            sequence_key = keyed_hash(derive_key(seed, epoch, block, _SEQUENCE_ORDER), sequence_numbers)
            unit_key = keyed_hash(derive_key(seed, epoch, block, _UNIT_ORDER), packing.positions)
        else:
            sequence_key = np.minimum.reduceat(packing.positions, packing.bounds[:-1]).astype(np.uint64)
            unit_key = packing.positions.astype(np.uint64)
        order = np.argsort(sequence_key, kind="stable")
        rank = np.empty_like(order)
        rank[order] = sequence_numbers
        by_rank = np.lexsort((unit_key, np.repeat(rank, unit_counts)))
        bounds = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(unit_counts[order])])
        return Packing(packing.positions[by_rank], bounds)


class SequenceCursor:
    """Walks the stream of sequences from a position, planning each block when it is reached."""

    def __init__(self, planner: EpochPlanner, position: Position, infinite: bool) -> None:
        self._planner = planner
        self._infinite = infinite
        self._epoch, self._block, self._offset = position.epoch, position.block, position.offset
        self._sequences = position.sequences
        self._plan: Packing | None = None

    @property
    def position(self) -> Position:
        return Position(self._epoch, self._block, self._offset, self._sequences)

    @property
    def fractional_epoch(self) -> float:
        """Epochs done, counted in lines; within a block its sequences count alike."""
        done = 0.0
        if self._plan is not None and self._offset:
            done = self._offset / len(self._plan) * self._planner.lines_in_block(self._block)
        return self._epoch + (self._block * BLOCK_LINES + done) / self._planner.lines

    def take(self, count: int) -> list[NDArray[np.int64]]:
        """Line numbers of the next `count` sequences; fewer only at the end of a finite stream."""
        taken: list[NDArray[np.int64]] = []
        while len(taken) < count and (self._infinite or self._epoch == 0):
            plan = self._current_plan()
            end = min(self._offset + count - len(taken), len(plan))
            taken += [plan.sequence(number) for number in range(self._offset, end)]
            # An offset from elsewhere may lie beyond this block: the rest of it counts in the next one.
            self._offset = max(end, self._offset)
            if self._offset >= len(plan):
                self._leave_block(self._offset - len(plan))
        self._sequences += len(taken)
        return taken

    def _current_plan(self) -> Packing:
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
