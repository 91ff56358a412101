from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from molgen_pretrain.data.permutation import FeistelPermutation, derive_key, mix64


@given(st.integers(1, 3000), st.integers(-(2**70), 2**70))
def test_bijective_for_every_size_and_key(size: int, seed: int) -> None:
    images = FeistelPermutation(size, derive_key(seed)).permute(np.arange(size))
    assert np.array_equal(np.sort(images), np.arange(size))


def test_bijective_for_a_million_and_three() -> None:
    images = FeistelPermutation(1_000_003, derive_key(1, 2)).permute(np.arange(1_000_003))
    assert np.array_equal(np.sort(images), np.arange(1_000_003))


def test_any_part_can_be_computed_alone() -> None:
    permutation = FeistelPermutation(10**12 + 39, derive_key(5))
    indices = np.array([0, 10**12, 123_456_789_012], dtype=np.int64)
    together = permutation.permute(indices)
    assert together.tolist() == [int(permutation.permute(indices[i : i + 1])[0]) for i in range(3)]
    assert len(set(together.tolist())) == 3


def test_looks_random() -> None:
    size = 20_000
    images = FeistelPermutation(size, derive_key(0, 0)).permute(np.arange(size))
    other = FeistelPermutation(size, derive_key(0, 1)).permute(np.arange(size))
    assert np.sum(images == other) < 15  # 1 is expected
    assert abs(np.corrcoef(np.arange(size), images)[0, 1]) < 0.03  # 4 standard deviations
    assert abs(np.corrcoef(images[:-1], images[1:])[0, 1]) < 0.03
    # Neighbours must not stay neighbours: no step between successive images is common.
    assert np.unique(np.diff(images), return_counts=True)[1].max() < 15


def test_mixing_is_splitmix64() -> None:
    # The first outputs of the published generator for seed 1234567: the counter advances by the constant.
    golden = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + golden * step) % 2**64 for step in range(3)], dtype=np.uint64)
    assert mix64(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_refuses_what_is_outside() -> None:
    with pytest.raises(IndexError):
        FeistelPermutation(5, 0).permute(np.array([5]))
    with pytest.raises(ValueError, match="at least one"):
        FeistelPermutation(0, 0)
