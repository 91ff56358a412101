"""What token counts alone tell about the units: percentiles, and the bins of a histogram."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise

MOST_BINS = 20
_LONG_TAIL = 10  # the longest unit over the median: beyond it a linear axis is mostly empty
_STEPS_OF_A_DECADE = ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1,))  # logarithmic edges, from fine to coarse


@dataclass(frozen=True, slots=True)
class LengthStats:
    """Tokens per unit, without separator. A percentile is the least length that so many units do not exceed."""

    units: int
    tokens: int
    shortest: int
    mean: float
    median: int
    p95: int
    p99: int
    longest: int

    @classmethod
    def of(cls, units_of_length: Mapping[int, int]) -> LengthStats:
        """From the number of units of each length; at least one. Costs as much as there are lengths."""
        lengths = sorted(units_of_length)
        upto = list(accumulate(units_of_length[length] for length in lengths))
        units, tokens = upto[-1], sum(length * count for length, count in units_of_length.items())

        def percentile(percent: int) -> int:
            # In integers: 0.95 * units would round differently here and there.
            return next(length for length, done in zip(lengths, upto, strict=True) if done * 100 >= units * percent)

        return cls(
            units=units,
            tokens=tokens,
            shortest=lengths[0],
            mean=tokens / units,
            median=percentile(50),
            p95=percentile(95),
            p99=percentile(99),
            longest=lengths[-1],
        )


@dataclass(frozen=True, slots=True)
class Bin:
    """Units of `first` to `last` tokens, both included."""

    first: int
    last: int
    units: int


def histogram(units_of_length: Mapping[int, int], most: int = MOST_BINS) -> list[Bin]:
    """At most `most` adjoining bins with round edges; equally wide, or growing where a few units are very long."""
    stats = LengthStats.of(units_of_length)
    edges = _growing_edges(stats, most) if is_long_tailed(stats) else _even_edges(stats, most)
    units = [0] * (len(edges) - 1)
    number = 0
    for length in sorted(units_of_length):
        while length >= edges[number + 1]:
            number += 1
        units[number] += units_of_length[length]
    return [Bin(first, after - 1, count) for (first, after), count in zip(pairwise(edges), units, strict=True)]


def is_long_tailed(stats: LengthStats) -> bool:
    """Whether lengths are to be shown on a logarithmic axis."""
    return stats.longest > _LONG_TAIL * stats.median


def _even_edges(stats: LengthStats, most: int) -> list[int]:
    for width in _round_widths():
        first, after = stats.shortest // width, stats.longest // width + 1
        if after - first <= most:
            return [number * width for number in range(first, after + 1)]
    raise AssertionError("widths grow without end")


def _round_widths() -> Iterator[int]:
    decade = 1
    while True:
        yield from (decade, 2 * decade, 5 * decade)
        decade *= 10


def _growing_edges(stats: LengthStats, most: int) -> list[int]:
    for steps in _STEPS_OF_A_DECADE:
        decades = range(len(str(stats.longest)) + 1)
        grid = sorted({int(step * 10**decade) for decade in decades for step in steps})
        first = max(edge for edge in grid if edge <= stats.shortest)
        after = min(edge for edge in grid if edge > stats.longest)
        edges = [edge for edge in grid if first <= edge <= after]
        if len(edges) <= most + 1:
            break
    return edges
