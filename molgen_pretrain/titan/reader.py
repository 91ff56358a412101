"""Tensors and small values of a distributed checkpoint, one at a time."""

from __future__ import annotations

import io
import math
from collections.abc import Collection
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from molgen_pretrain.errors import UserError
from molgen_pretrain.titan.lazy import LazyTensor
from molgen_pretrain.titan.metadata import Chunk, Place, StoredTensor, read_contents


class DcpReader:
    """One distributed checkpoint. Every tensor and value was written by torch.save, and is read with weights_only:
    by a reader that builds tensors, numbers, texts and containers of them, and nothing else."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError where `.metadata` is missing, damaged, or asks for code to be run."""
        self.folder = folder
        self._contents = read_contents(folder)

    @property
    def tensor_names(self) -> Collection[str]:
        return self._contents.tensors.keys()

    @property
    def blob_names(self) -> Collection[str]:
        """Names of pickled values, which are not read unless `value` asks for one."""
        return self._contents.blobs.keys()

    def tensor(self, name: str) -> LazyTensor:
        """A stored tensor. Reading it raises UserError where the files do not hold what the metadata says."""
        stored = self._contents.tensors[name]
        return LazyTensor(stored.dtype, stored.shape, lambda: self._assemble(name, stored))

    def value(self, name: str) -> Any:
        """A number, text, None, or a tuple or list of such; a tensor that holds one number counts as that number.

        Raises:
            UserError: it is anything else.
        """
        if name in self._contents.tensors:
            value: Any = self.tensor(name).read()
        else:
            value = self._load(name, self._contents.blobs[name])
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if not _is_plain(value):
            raise UserError(f"{self.folder}: {name} is a {type(value).__name__}, no plain value")
        return value

    def _assemble(self, name: str, stored: StoredTensor) -> Tensor:
        problem = _tiling_problem(stored)
        if problem:
            raise UserError(f"{self.folder}: {name} of shape {stored.shape}: {problem}")
        if len(stored.chunks) == 1:
            return self._read_chunk(name, stored.dtype, stored.chunks[0])
        whole = torch.empty(stored.shape, dtype=stored.dtype)
        for chunk in stored.chunks:
            ends = (offset + size for offset, size in zip(chunk.offsets, chunk.sizes, strict=True))
            box = tuple(slice(*span) for span in zip(chunk.offsets, ends, strict=True))
            whole[box].copy_(self._read_chunk(name, stored.dtype, chunk))
        return whole

    def _read_chunk(self, name: str, dtype: torch.dtype, chunk: Chunk) -> Tensor:
        data = self._load(name, chunk.place)
        if type(data) is not Tensor or (data.dtype, tuple(data.shape)) != (dtype, chunk.sizes):
            raise UserError(f"{self.folder}/{chunk.place.file}: {name} is not the {dtype} {chunk.sizes} it should be")
        return data.contiguous()

    def _load(self, name: str, place: Place) -> Any:
        path = self.folder / place.file
        try:
            if not path.is_file():  # a pipe would block whoever opens it
                raise FileNotFoundError("no regular file")
            with path.open("rb") as file:
                return torch.load(io.BufferedReader(_Window(file, place)), map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file can fail in any way
            raise UserError(f"{path}: {name} cannot be read: {type(error).__name__}: {error}") from error


class _Window(io.RawIOBase):
    """A part of a file, as a file of its own."""

    def __init__(self, file: io.BufferedReader, place: Place) -> None:
        self._file = file
        self._place = place
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._place.length}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._place.length - self._position)]
        self._file.seek(self._place.offset + self._position)
        count = self._file.readinto(view)
        self._position += count
        return count


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _tiling_problem(stored: StoredTensor) -> str:
    """Empty where the chunks make up the tensor and are no larger than what is stored of them."""
    for chunk in stored.chunks:
        if not len(chunk.offsets) == len(chunk.sizes) == len(stored.shape):
            return f"a chunk has the offsets {chunk.offsets} and sizes {chunk.sizes}"
        fits = all(o >= 0 and o + s <= n for o, s, n in zip(chunk.offsets, chunk.sizes, stored.shape, strict=True))
        if not fits or math.prod(chunk.sizes) * stored.dtype.itemsize > chunk.place.length:
            return f"a chunk at {chunk.offsets} of {chunk.sizes} is too large"
    if sum(math.prod(chunk.sizes) for chunk in stored.chunks) != math.prod(stored.shape) or any(
        _overlap(one, other) for one, other in combinations(stored.chunks, 2)
    ):
        return "its chunks do not make it up"
    return ""


def _overlap(one: Chunk, other: Chunk) -> bool:
    spans = zip(one.offsets, one.sizes, other.offsets, other.sizes, strict=True)
    return all(a < b + n and b < a + m for a, m, b, n in spans)
