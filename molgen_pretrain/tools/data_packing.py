"""How well units fill sequences of a length: measured with the run's own planner, no text read."""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from molgen_pretrain.data.corpus import OpenSource

MOST_BLOCKS = 16  # a million units: seconds, and far more than the figure needs
REFERENCE_LOOKAHEAD = 100


@dataclass(frozen=True, slots=True)
class PackingStats:
    """One epoch of one source in sequences of `seq_len` tokens.

    `tokens` counts what is trained, separators included; `fill` is the share of positions that hold it, and
    `best_fit_fill` what taking the largest of 100 pending units that fits would reach. With `is_estimate`,
    `fill`, `best_fit_fill` and `sequences` come from some blocks of the epoch; the rest is exact always.
    """

    seq_len: int
    sequences: int
    tokens: int
    fill: float
    best_fit_fill: float
    units: int
    truncated_units: int
    dropped_units: int
    is_estimate: bool

    @property
    def units_per_sequence(self) -> float:
        return self.units / self.sequences

    @classmethod
    def total(cls, parts: Sequence[PackingStats]) -> PackingStats:
        """Several sources in sequences of one length."""
        sequences, tokens = sum(part.sequences for part in parts), sum(part.tokens for part in parts)
        best_fit_positions = sum(part.tokens / part.best_fit_fill for part in parts)
        return cls(
            seq_len=parts[0].seq_len,
            sequences=sequences,
            tokens=tokens,
            fill=tokens / (sequences * parts[0].seq_len),
            best_fit_fill=tokens / best_fit_positions,
            units=sum(part.units for part in parts),
            truncated_units=sum(part.truncated_units for part in parts),
            dropped_units=sum(part.dropped_units for part in parts),
            is_estimate=any(part.is_estimate for part in parts),
        )


def measure_packing(
    source: OpenSource, seq_len: int, *, shuffle_lines: bool, most_blocks: int = MOST_BLOCKS
) -> PackingStats:
    """Plans epoch 0, or `most_blocks` of its blocks spread over it."""
    blocks = spread(source.planner.blocks, most_blocks)
    sequences = best_fit_sequences = tokens = 0
    for block in blocks:
        planned = source.planner.plan_block(0, block).sequences
        sizes = np.minimum(planned.counts, seq_len - 1) + 1
        # The reference gets the units as they come, not as they are packed: shuffled, or in line order.
        order = np.random.default_rng(block).permutation(len(sizes)) if shuffle_lines else np.argsort(planned.units)
        sizes = sizes[order]
        tokens += int(sizes.sum())
        sequences += len(planned)
        best_fit_sequences += count_best_fit_sequences(sizes, seq_len, REFERENCE_LOOKAHEAD)
    is_estimate = len(blocks) < source.planner.blocks
    summary = source.summary
    return PackingStats(
        seq_len=seq_len,
        sequences=round(sequences * summary.tokens / tokens) if is_estimate else sequences,
        tokens=summary.tokens,
        fill=tokens / (sequences * seq_len),
        best_fit_fill=tokens / (best_fit_sequences * seq_len),
        units=summary.units,
        truncated_units=summary.truncated_units,
        dropped_units=summary.dropped_units,
        is_estimate=is_estimate,
    )


def spread(blocks: int, most: int) -> Sequence[int]:
    """Every block, or `most` of them at equal distances. The last one, which is short, is left out then."""
    return range(blocks) if blocks <= most else [number * (blocks - 1) // most for number in range(most)]


def count_best_fit_sequences(sizes: NDArray[np.int64], capacity: int, lookahead: int) -> int:
    """Sequences that the usual packer needs: the largest pending unit that fits, until none does.

    At most `lookahead` units are pending; as one leaves, the next one joins.
    """
    arrivals = iter(sizes.tolist())
    pending = sorted(islice(arrivals, lookahead))
    sequences = 0
    while pending:
        sequences += 1
        free = capacity
        while place := bisect_right(pending, free):
            free -= pending.pop(place - 1)
            if (arrival := next(arrivals, None)) is not None:
                insort(pending, arrival)
    return sequences


def fill_text(fill: float) -> str:
    """A share that is often close to one, rounded down: 100 % is said of nothing less."""
    return f"{math.floor(1e4 * fill) / 100:.2f} %"
