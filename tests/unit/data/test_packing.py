from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from molgen_pretrain.data.packing import Packing, pack


def fill(sizes: np.ndarray, packing: Packing) -> np.ndarray:
    return np.array([sizes[units].sum() for units in np.split(packing.positions, packing.bounds[1:-1])][: len(packing)])


@given(
    st.integers(1, 60).flatmap(
        lambda capacity: st.tuples(st.just(capacity), st.lists(st.integers(1, capacity), max_size=80))
    ),
    st.integers(1, 100),
)
def test_every_unit_once_and_never_too_full(case: tuple[int, list[int]], lookahead_limit: int) -> None:
    capacity, lengths = case
    sizes = np.array(lengths, dtype=np.int64)
    packing = pack(sizes, capacity, lookahead_limit)
    assert sorted(packing.positions.tolist()) == list(range(len(lengths)))
    assert packing.bounds[0] == 0
    assert packing.bounds[-1] == len(lengths)
    assert np.all(np.diff(packing.bounds) > 0)
    assert np.all(fill(sizes, packing) <= capacity)


def test_lookahead_of_one_keeps_the_order() -> None:
    packing = pack(np.array([3, 5, 2, 9, 1]), 10, lookahead_limit=1)
    assert packing.positions.tolist() == [0, 1, 2, 3, 4]
    assert packing.bounds.tolist() == [0, 3, 5]


@pytest.mark.parametrize("lookahead_limit", [50, 500])
def test_only_pending_units_are_chosen(lookahead_limit: int) -> None:
    sizes = log_normal_sizes(300, 2048, 5000)
    packing = pack(sizes, 2048, lookahead_limit)
    for taken, position in enumerate(packing.positions.tolist()):
        assert position < taken + lookahead_limit


def log_normal_sizes(mean: int, capacity: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(np.log(mean) - 0.125, 0.5, count)
    return np.clip(lengths, 8, capacity - 1).astype(np.int64) + 1


@pytest.mark.parametrize("capacity", [2048, 4096])
@pytest.mark.parametrize("mean", [150, 400, 620])
@pytest.mark.parametrize(("lookahead_limit", "least"), [(65536, 0.999), (100, 0.998)])
def test_close_to_the_optimum(mean: int, capacity: int, lookahead_limit: int, least: float) -> None:
    sizes = log_normal_sizes(mean, capacity, 20_000)
    packing = pack(sizes, capacity, lookahead_limit)
    fewest = -(-int(sizes.sum()) // capacity)
    assert fewest / len(packing) >= least


def test_exact_pairs_need_two_units_of_one_size() -> None:
    # After 6 of 10 the only pair is 2 + 2: possible with two such units, not with one.
    assert len(pack(np.array([6, 2, 2]), 10, 10)) == 1
    single = pack(np.array([6, 2, 9]), 10, 10)
    assert fill(np.array([6, 2, 9]), single).tolist() == [9, 8]


def test_refuses_sizes_that_cannot_fit() -> None:
    with pytest.raises(ValueError, match="sizes must lie in"):
        pack(np.array([11]), 10, 5)
