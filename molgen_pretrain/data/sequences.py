"""Planned sequences as arrays: which units, of how many tokens, in which rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(slots=True)
class Sequences:
    """Row i holds the units `units[bounds[i]:bounds[i + 1]]`; a row without units is filler.

    `counts` are the units' tokens as the one-time pass counted them, without separator and before truncation.
    """

    units: Ints
    counts: Ints
    bounds: Ints

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def slice(self, begin: int, end: int) -> Sequences:
        """Rows begin .. end - 1, as views."""
        if begin == 0 and end == len(self):
            return self
        bounds = self.bounds[begin : end + 1]
        first, last = int(bounds[0]), int(bounds[-1])
        return Sequences(self.units[first:last], self.counts[first:last], bounds - first)

    def rows(self, numbers: Ints) -> Sequences:
        """The rows of these numbers, in this order."""
        sizes = np.diff(self.bounds)[numbers]
        bounds = _bounds(sizes)
        chosen = np.repeat(self.bounds[numbers] - bounds[:-1], sizes) + np.arange(bounds[-1])
        return Sequences(self.units[chosen], self.counts[chosen], bounds)

    def with_fillers(self, count: int) -> Sequences:
        """The same rows and `count` empty ones after them."""
        return Sequences(self.units, self.counts, np.append(self.bounds, np.full(count, self.bounds[-1])))

    def unit_ids(self) -> list[Ints]:
        """The units of each row."""
        return [self.units[begin:end] for begin, end in pairwise(self.bounds.tolist())]

    @classmethod
    def joined(cls, parts: Iterable[Sequences]) -> Sequences:
        parts = list(parts)
        if len(parts) == 1:
            return parts[0]
        sizes = [np.empty(0, dtype=np.int64), *(np.diff(part.bounds) for part in parts)]
        units = [np.empty(0, dtype=np.int64), *(part.units for part in parts)]
        counts = [np.empty(0, dtype=np.int64), *(part.counts for part in parts)]
        return cls(np.concatenate(units), np.concatenate(counts), _bounds(np.concatenate(sizes)))


class Layout(NamedTuple):
    """Where tokens lie in rows of `seq_len` written one after the other.

    Unit u has its `kept[u]` tokens from `places[u]` on and its separator after them; row i has `filled[i]`
    tokens, separators included, before the padding.
    """

    places: Ints
    kept: Ints
    filled: Ints
    seq_len: int

    @classmethod
    def of(cls, sequences: Sequences, seq_len: int) -> Layout:
        kept = np.minimum(sequences.counts, seq_len - 1)
        ends = _bounds(kept + 1)  # of the units, were there no padding
        row_ends = ends[sequences.bounds]
        shifts = np.arange(len(sequences)) * seq_len - row_ends[:-1]
        return cls(ends[:-1] + np.repeat(shifts, np.diff(sequences.bounds)), kept, np.diff(row_ends), seq_len)

    @property
    def separators(self) -> Ints:
        """Where each unit's separator stands."""
        return self.places + self.kept

    def paddings(self) -> list[slice]:
        """Where the rows that are not full have their padding."""
        size = self.seq_len
        return [
            slice(row * size + filled, (row + 1) * size)
            for row, filled in enumerate(self.filled.tolist())
            if filled < size
        ]

    def borders(self) -> Ints:
        """Where a unit, which its separator belongs to, or a row's padding begins, in order; and the end."""
        rows = len(self.filled)
        paddings = np.arange(rows) * self.seq_len + self.filled
        end = [rows * self.seq_len]
        return np.sort(np.concatenate([self.places, paddings[self.filled < self.seq_len], end]))

    def slice(self, begin: int, end: int, units: slice) -> Layout:
        """That of rows begin .. end - 1 alone, which hold these units."""
        places = self.places[units] - begin * self.seq_len
        return Layout(places, self.kept[units], self.filled[begin:end], self.seq_len)


def _bounds(sizes: Ints) -> Ints:
    bounds = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.cumsum(sizes, out=bounds[1:])
    return bounds
