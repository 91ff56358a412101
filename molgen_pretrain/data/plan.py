"""The order of a source's training sequences, as a pure function.

Epoch e is the permutation of all lines keyed by (seed, e), cut into blocks of `BLOCK_LINES`; each block is
packed by itself and its sequences are emitted in an order keyed by (seed, e, block). So any block can be
planned without the ones before it, which is all that a resume needs. World size, workers and restarts do not
enter; the files, their token counts, the seed, `seq_len` and the packing settings do.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from molgen_pretrain.data.line_index import LineIndex
from molgen_pretrain.data.packing import Packing, pack
from molgen_pretrain.data.permutation import FeistelPermutation, derive_key, keyed_hash
from molgen_pretrain.data.sequences import Sequences

# A packing setting: another value is another order. Large enough that a block's one partly filled sequence
# weighs nothing (0.005 % at 2,048 tokens), small enough to be planned in a twentieth of a second.
BLOCK_LINES = 65536

_EPOCH_ORDER, _SEQUENCE_ORDER, _UNIT_ORDER = 1, 2, 3


@dataclass(frozen=True, slots=True)
class OrderSettings:
    """What decides the order besides the files and the tokenizer. Sizes in tokens and units."""

    seed: int
    seq_len: int
    shuffle_lines: bool
    lookahead_limit: int
    drop_overflow: bool


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """The sequences of a block in the order in which they are emitted, and how many units it passed over."""

    sequences: Sequences
    dropped: int

    def __len__(self) -> int:
        return len(self.sequences)


class EpochPlanner:
    """Plans single blocks of single epochs from token counts."""

    def __init__(self, index: LineIndex, settings: OrderSettings) -> None:
        self._index = index
        self._settings = settings
        self.lines = index.lines
        self.blocks = -(-index.lines // BLOCK_LINES)

    def plan_block(self, epoch: int, block: int) -> BlockPlan:
        """The sequences of a block; units are line numbers."""
        lines = self._lines_of_block(epoch, block)
        counts = self._index.token_counts(lines)
        most = self._settings.seq_len - 1
        is_unit = counts > 0
        is_used = is_unit & (counts <= most) if self._settings.drop_overflow else is_unit
        lines, counts = lines[is_used], counts[is_used]
        packing = pack(np.minimum(counts, most) + 1, self._settings.seq_len, self._settings.lookahead_limit)
        chosen, bounds = self._order_sequences(packing, epoch, block)
        dropped = int(np.count_nonzero(is_unit)) - len(lines)
        return BlockPlan(Sequences(lines[chosen], counts[chosen], bounds), dropped)

    def lines_before_block(self, block: int) -> int:
        return block * BLOCK_LINES

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

    def _lines_of_block(self, epoch: int, block: int) -> NDArray[np.int64]:
        start = block * BLOCK_LINES
        lines = np.arange(start, start + self.lines_in_block(block), dtype=np.int64)
        if self._settings.shuffle_lines:
            key = derive_key(self._settings.seed, epoch, _EPOCH_ORDER)
            lines = FeistelPermutation(self.lines, key).permute(lines)
        return lines

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
