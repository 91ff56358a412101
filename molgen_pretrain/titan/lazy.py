"""Tensors that are read when they are needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LazyTensor:
    """dtype and shape of a tensor in a file, and how to read it: whole, contiguous, on the CPU, anew at each call."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def to(self, dtype: torch.dtype) -> LazyTensor:
        """The same in another dtype, converted as it is read."""
        return LazyTensor(dtype, self.shape, lambda: self.read().to(dtype))


def split_into_shards(tensors: Mapping[str, LazyTensor], max_bytes: int) -> list[list[str]]:
    """Names in groups of at most `max_bytes` each (a larger tensor has one to itself), in the given order."""
    shards: list[list[str]] = []
    size = max_bytes
    for name, tensor in tensors.items():
        if size + tensor.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards
