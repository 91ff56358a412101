"""Pseudo-random orders that need no memory, in integer arithmetic that is the same on every platform.

Nothing here draws from a generator: an order is a keyed function of an index, so any part of an epoch can be
computed by itself. The mixing function is the finaliser of splitmix64 (Steele, Lea, Flood: "Fast splittable
pseudorandom number generators", OOPSLA 2014); numpy's and Python's own shuffles are avoided because their
streams may change between versions.
"""

from __future__ import annotations

from math import isqrt

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = 8

Indices = NDArray[np.int64]


def mix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of 64-bit integers whose output looks random; wraps silently, as arrays do in numpy."""
    mixed = values + np.uint64(_GOLDEN)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def derive_key(*parts: int) -> int:
    """One 64-bit key from several integers of any size or sign; the order of the parts matters."""
    key = 0
    for part in parts:
        mixed = mix64(np.array([key ^ (part & _MASK)], dtype=np.uint64))
        key = int(mixed[0])
    return key


def keyed_hash(key: int, values: Indices) -> NDArray[np.uint64]:
    """A pseudo-random 64-bit number for each value, for use as a sort key."""
    return mix64(mix64(values.astype(np.uint64)) ^ np.uint64(key))


class FeistelPermutation:
    """A keyed bijection of 0 .. size-1, evaluated for any subset of indices.

    An index is written as (left, right) in a rows x columns grid that just covers the range, and each round
    adds a hash of one half to the other, modulo its side. Results that fall into the overhang of the grid
    (fewer than `columns` cells) are sent through again until they land inside: cycle walking (Black and
    Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).
    """

    def __init__(self, size: int, key: int) -> None:
        if size < 1:
            raise ValueError(f"a permutation needs at least one element, got {size}")
        self.size = size
        self._columns = isqrt(size - 1) + 1
        self._rows = -(-size // self._columns)
        self._round_keys = [derive_key(key, number) for number in range(_ROUNDS)]

    def permute(self, indices: Indices) -> Indices:
        """The images of `indices` (int64, any shape [n]); raises IndexError outside 0 .. size-1."""
        if indices.size and (indices.min() < 0 or indices.max() >= self.size):
            raise IndexError(f"indices must lie in 0 .. {self.size - 1}")
        images = self._encrypt(indices)
        outside = np.flatnonzero(images >= self.size)
        while outside.size:
            images[outside] = self._encrypt(images[outside])
            outside = outside[images[outside] >= self.size]
        return images

    def _encrypt(self, indices: Indices) -> Indices:
        left, right = np.divmod(indices, self._columns)
        for number, key in enumerate(self._round_keys):
            if number % 2 == 0:
                left = (left + _bounded_hash(key, right, self._rows)) % self._rows
            else:
                right = (right + _bounded_hash(key, left, self._columns)) % self._columns
        return left * self._columns + right


def _bounded_hash(key: int, values: Indices, bound: int) -> Indices:
    return (keyed_hash(key, values) % np.uint64(bound)).astype(np.int64)
