"""A file of numbers that is looked up at random, with little of it resident at a time.

A lookup in a memory-mapped file makes more than its page resident: what the system holds around it in one
piece, from 64 KiB to 2 MiB. A few thousand lookups spread over a large file, and all of it counts as this
process's memory, in every rank and worker.
"""

from __future__ import annotations

import mmap
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# What may be resident at a time: a smaller file as a whole, a larger one in slices of this size.
_SLICE_BYTES = 16 * 1024 * 1024
# With fewer lookups per slice than this, reading each number by itself is quicker than mapping.
_DENSE_LOOKUPS = 16


class MappedArray:
    """`array` is the whole file as a read-only numpy array [count]; `take` looks up with bounded memory."""

    _descriptor = -1  # for a `__del__` after a file that could not be opened

    def __init__(self, file: Path, dtype: np.dtype, count: int) -> None:
        self._descriptor = os.open(file, os.O_RDONLY)
        self._mapping: mmap.mmap | None = None
        self.array: NDArray = np.empty(0, dtype=dtype)
        if count:  # an empty file cannot be mapped
            self._mapping = mmap.mmap(self._descriptor, count * dtype.itemsize, access=mmap.ACCESS_READ)
            self.array = np.frombuffer(self._mapping, dtype=dtype)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def take(self, indices: NDArray[np.int64]) -> NDArray:
        """`array[indices]` for indices [n] in any order; those outside the array raise IndexError."""
        size = self.array.nbytes
        if size <= _SLICE_BYTES:
            return self.array[indices]
        if len(indices) * _SLICE_BYTES < _DENSE_LOOKUPS * size:
            return self._read_each(indices)
        return self._take_by_slices(indices)

    def release(self) -> None:
        """Lets go of what is resident; the system's page cache keeps it, so using it again costs little."""
        if self._mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)

    def _read_each(self, indices: NDArray[np.int64]) -> NDArray:
        if indices.size and not 0 <= indices.min() <= indices.max() < self.array.size:
            raise IndexError(f"indices must lie in 0 .. {self.array.size - 1}")
        itemsize = self.array.itemsize
        items = [os.pread(self._descriptor, itemsize, index * itemsize) for index in indices.tolist()]
        return np.frombuffer(b"".join(items), dtype=self.array.dtype)

    def _take_by_slices(self, indices: NDArray[np.int64]) -> NDArray:
        taken = np.empty(len(indices), dtype=self.array.dtype)
        order = np.argsort(indices, kind="stable")
        numbers_per_slice = _SLICE_BYTES // self.array.itemsize
        edges = np.arange(0, self.array.size + numbers_per_slice, numbers_per_slice)
        bounds = np.searchsorted(indices[order], edges).tolist()
        bounds[0], bounds[-1] = 0, len(order)  # what is out of range goes to numpy, which raises
        for begin, end in pairwise(bounds):
            if begin < end:
                part = order[begin:end]
                taken[part] = self.array[indices[part]]
                self.release()
        return taken
