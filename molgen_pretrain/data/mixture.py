"""Several sources in one order: whose turn it is, in exact proportion to their weights.

The unit of a mixture is the sequence: each is packed from one source. Turns follow Tijdeman's solution of the
chairman assignment problem ("The chairman assignment problem", Discrete Mathematics 32, 1980, theorem 1): with
k sources, after any n turns a source of weight share w has had n * w turns to within 1 - 1 / (2k - 2). So in
any window, wherever it begins, its turns differ from w * window by less than 2. All is integer arithmetic.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from molgen_pretrain.data.cursor import SequenceCursor
from molgen_pretrain.data.position import Position, SourcePosition
from molgen_pretrain.data.sequences import Sequences
from molgen_pretrain.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """One source of a mixture; its weight is relative to those of the others."""

    name: str
    files: Sequence[Path]
    weight: float


def weight_shares(weights: Sequence[float]) -> list[Fraction]:
    """The weights as shares of 1, exactly as their decimals say (0.1 is a tenth).

    Raises UserError for a weight that is not positive and finite.
    """
    for weight in weights:
        if not (math.isfinite(weight) and weight > 0):
            raise UserError(f"data.sources: weight={weight}: must be a positive, finite number")
    exact = [Fraction(str(weight)) for weight in weights]
    return [weight / sum(exact) for weight in exact]


class Turns:
    """Says which source each sequence comes from; a function of the turns that each has had."""

    def __init__(self, shares: Sequence[Fraction], had: Sequence[int]) -> None:
        self._whole = math.lcm(*(share.denominator for share in shares))
        self._parts = [int(share * self._whole) for share in shares]
        self._had = list(had)
        self._span = max(2 * len(shares) - 2, 1)

    @property
    def are_in_proportion(self) -> bool:
        """Whether the turns so far can have come from these shares: none is a whole turn ahead or behind."""
        total = sum(self._had)
        return all(
            abs(part * total - had * self._whole) < self._whole
            for part, had in zip(self._parts, self._had, strict=True)
        )

    def take(self, count: int) -> list[int]:
        """The numbers of the sources of the next `count` sequences."""
        first = sum(self._had) + 1
        return [self._next(turn) for turn in range(first, first + count)]

    def _next(self, turn: int) -> int:
        """Of the sources that are owed enough to be allowed a turn, the one that has to have it soonest."""
        chosen, chosen_due, chosen_part = -1, 0, 1
        span, whole, reached = self._span, self._whole, turn * self._span
        for source, (part, had) in enumerate(zip(self._parts, self._had, strict=True)):
            quota = had * span * whole
            is_allowed = quota + whole <= reached * part
            due = quota + (span - 1) * whole  # the turn by which it has to come is due / part / span
            if is_allowed and (chosen < 0 or due * chosen_part < chosen_due * part):
                chosen, chosen_due, chosen_part = source, due, part
        self._had[chosen] += 1
        return chosen


class MixtureCursor:
    """Walks the sequences of all sources in their common order; with one source, those of that one.

    `first_units` are added to a source's line numbers to make unit ids that are unique over all sources.
    """

    def __init__(
        self, cursors: Mapping[str, SequenceCursor], first_units: Sequence[int], shares: Sequence[Fraction]
    ) -> None:
        self._cursors = dict(cursors)
        self._first_units = first_units
        self._turns = Turns(shares, [cursor.position.sequences for cursor in cursors.values()])

    @property
    def position(self) -> Position:
        return Position({name: cursor.position for name, cursor in self._cursors.items()})

    @property
    def dropped(self) -> int:
        """Units passed over since the cursor was made."""
        return sum(cursor.dropped for cursor in self._cursors.values())

    @property
    def lines_passed(self) -> dict[str, float]:
        """Of each source, as `SequenceCursor.lines_passed`."""
        return {name: cursor.lines_passed for name, cursor in self._cursors.items()}

    def take(self, count: int) -> Sequences:
        """The next `count` sequences; fewer only at the end of a single finite source."""
        cursors = list(self._cursors.values())
        if len(cursors) == 1:
            return cursors[0].take(count)
        turns = np.array(self._turns.take(count))
        taken = [cursor.take(int(np.count_nonzero(turns == number))) for number, cursor in enumerate(cursors)]
        parts = [
            replace(sequences, units=sequences.units + first)
            for sequences, first in zip(taken, self._first_units, strict=True)
        ]
        rows = np.empty(count, dtype=np.int64)
        rows[np.argsort(turns, kind="stable")] = np.arange(count)
        return Sequences.joined(parts).rows(rows)


def start_positions(position: Position, shares: Mapping[str, Fraction]) -> dict[str, SourcePosition]:
    """Where each source begins: at its own place, a new one at its beginning, one that is gone is left out.

    Turns are counted anew where those of the position do not fit the shares: the weights have changed, and
    the new ones hold from here on instead of making up for the past.
    """
    starts = {name: position.sources.get(name, SourcePosition()) for name in shares}
    if len(starts) == 1 or Turns(list(shares.values()), [s.sequences for s in starts.values()]).are_in_proportion:
        return starts
    logger.info("data.sources: the weights hold from here on, they are not those of the past")
    return {name: replace(start, sequences=0) for name, start in starts.items()}
