"""Percentiles and histograms against numpy and by their properties; the reference packer against a plain one."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from molgen_pretrain.tools.data_lengths import MOST_BINS, LengthStats, histogram
from molgen_pretrain.tools.data_packing import count_best_fit_sequences, spread

counted = st.dictionaries(st.integers(1, 200_000), st.integers(1, 1000), min_size=1, max_size=50)


@given(counted)
@settings(max_examples=100, deadline=None)
def test_percentiles_are_those_of_numpy(units_of_length: dict[int, int]) -> None:
    lengths = np.repeat(list(units_of_length), list(units_of_length.values()))
    stats = LengthStats.of(units_of_length)
    expected = [np.percentile(lengths, percent, method="inverted_cdf") for percent in (50, 95, 99)]
    assert [stats.median, stats.p95, stats.p99] == expected
    assert (stats.shortest, stats.longest, stats.units) == (lengths.min(), lengths.max(), len(lengths))
    assert stats.tokens == lengths.sum()
    assert stats.mean == pytest.approx(lengths.mean())


@given(counted)
@settings(max_examples=100, deadline=None)
def test_every_unit_falls_into_one_bin(units_of_length: dict[int, int]) -> None:
    bins = histogram(units_of_length)
    assert len(bins) <= MOST_BINS
    assert all(before.last + 1 == after.first for before, after in pairwise(bins))
    for part in bins:
        assert part.units == sum(n for length, n in units_of_length.items() if part.first <= length <= part.last)
    assert sum(part.units for part in bins) == sum(units_of_length.values())


def test_a_long_tail_has_growing_bins() -> None:
    assert len({part.last - part.first for part in histogram({100: 5, 550: 1, 990: 5})}) == 1
    tail = histogram({20: 1000, 30: 1000, 9000: 1})
    assert [(part.first, part.last) for part in tail[:3]] == [(20, 29), (30, 49), (50, 69)]
    assert tail[-1].units == 1


def test_best_fit_takes_the_largest_pending_unit_that_fits() -> None:
    assert count_best_fit_sequences(np.array([5, 5, 5, 5]), 10, 100) == 2
    assert count_best_fit_sequences(np.array([6, 5, 5, 4]), 10, 100) == 2
    assert count_best_fit_sequences(np.array([6, 5, 5, 4]), 10, 2) == 3  # 4 comes too late for 6
    assert count_best_fit_sequences(np.array([], dtype=np.int64), 10, 100) == 0


@pytest.mark.parametrize("lookahead", [1, 7, 100])
def test_best_fit_against_a_plain_search(lookahead: int) -> None:
    sizes = np.random.default_rng(lookahead).integers(1, 101, 500)
    queue, pending, sequences = sizes.tolist(), [], 0
    while queue or pending:
        sequences += 1
        free = 100
        while True:
            while queue and len(pending) < lookahead:
                pending.append(queue.pop(0))
            fitting = [size for size in pending if size <= free]
            if not fitting:
                break
            pending.remove(max(fitting))
            free -= max(fitting)
    assert count_best_fit_sequences(sizes, 100, lookahead) == sequences


def test_blocks_are_spread_over_the_epoch() -> None:
    assert list(spread(5, 16)) == [0, 1, 2, 3, 4]
    blocks = list(spread(1000, 16))
    assert len(blocks) == len(set(blocks)) == 16
    assert blocks[0] == 0
    assert 900 < blocks[-1] < 999  # the last block is short
    assert list(spread(17, 16)) == list(range(16))
