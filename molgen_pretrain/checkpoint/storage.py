"""Tensors on disk: safetensors files written in one pass, and reading just the boxes a layout needs.

Nothing here can execute code from a checkpoint: JSON and safetensors are the only formats.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from molgen_pretrain.checkpoint.layout import shard_file
from molgen_pretrain.checkpoint.shards import Box, StoredTensor, local_part

_CHUNK_BYTES = 16 * 2**20
_DIGEST_BYTES = 16

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


@dataclass(frozen=True)
class FileRecord:
    """Size and BLAKE2b-128 digest of a file, as the manifest keeps them."""

    bytes: int
    blake2b: str


def write_bytes(path: Path, chunks: Iterator[Any]) -> FileRecord:
    """Write a new file through to the disk, hashing beside the writing.

    Raises:
        OSError: the storage refused, or the file exists.
    """
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    size = 0
    # One helper thread: hashing and writing both release the interpreter lock and cost about the same.
    with open(path, "xb", buffering=0) as file, ThreadPoolExecutor(1) as hasher:
        for chunk in chunks:
            hashing = hasher.submit(digest.update, chunk)
            view = memoryview(chunk)
            while len(view):
                view = view[file.write(view) :]
            size += len(chunk)
            hashing.result()
        os.fsync(file.fileno())
    return FileRecord(size, digest.hexdigest())


def write_json(path: Path, content: Any) -> FileRecord:
    """Write JSON through to the disk. Floats survive exactly; NaN and infinities are kept."""
    return write_bytes(path, iter([json.dumps(content, indent=1).encode()]))


def hash_file(path: Path) -> FileRecord:
    """What `write_bytes` would have recorded for the file as it is now."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    size = 0
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return FileRecord(size, digest.hexdigest())


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> FileRecord:
    """Write local tensors of any device as one safetensors file, one at a time in large pieces.

    Raises:
        OSError: the storage refused.
        TypeError: a dtype that safetensors has no name for.
    """
    # Wide elements first keeps every tensor aligned to its element size, as readers that map the file need.
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize))
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in ordered.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": dtype_name(tensor.dtype),
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    def chunks() -> Iterator[Any]:
        yield len(text).to_bytes(8, "little") + text
        for tensor in ordered.values():
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            for piece in flat.split(_CHUNK_BYTES):
                yield memoryview(piece.numpy())

    return write_bytes(path, chunks())


def read_tensors(folder: Path, stored: Mapping[str, StoredTensor], targets: Mapping[str, Tensor]) -> None:
    """Fill this rank's part of every target in place, bit for bit, from whichever files hold it.

    Names, shapes and dtypes must agree already; each file is opened once and only overlaps are read.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file does not hold what the index says.
    """
    wanted: dict[int, list[tuple[str, Box, Box, Box, Tensor]]] = defaultdict(list)
    for name, target in targets.items():
        box, local = local_part(target)
        for rank, part in stored[name].parts:
            common = box.overlap(part)
            if common.elements:
                wanted[rank].append((name, part, common, box, local))

    for rank, items in sorted(wanted.items()):
        path = folder / shard_file(rank)
        try:
            with safe_open(path, framework="pt") as file:
                for name, part, common, box, local in items:
                    whole = common == part
                    data = file.get_tensor(name) if whole else file.get_slice(name)[common.inside(part)]
                    if data.dtype != local.dtype or tuple(data.shape) != common.sizes:
                        raise ValueError(f"{path.name}: {name} is {data.dtype} {tuple(data.shape)}")
                    local[common.inside(box)].copy_(data)
        except SafetensorError as error:
            raise ValueError(f"{path.name}: {error}") from error


def index_to_json(stored: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """The index as JSON: name -> dtype, shape and [rank, offsets, sizes] of every part."""
    return {
        name: {
            "dtype": dtype_name(tensor.dtype),
            "shape": tensor.shape,
            "parts": [[rank, box.offsets, box.sizes] for rank, box in tensor.parts],
        }
        for name, tensor in stored.items()
    }


def index_from_json(content: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """The inverse of `index_to_json`."""
    return {
        name: StoredTensor(
            _DTYPES[entry["dtype"]],
            tuple(entry["shape"]),
            tuple((rank, Box(tuple(offsets), tuple(sizes))) for rank, offsets, sizes in entry["parts"]),
        )
        for name, entry in content.items()
    }


def dtype_name(dtype: torch.dtype) -> str:
    """The safetensors name of a dtype."""
    if dtype not in DTYPE_NAMES:
        raise TypeError(f"{dtype} cannot be stored; storable: {', '.join(map(str, DTYPE_NAMES))}")
    return DTYPE_NAMES[dtype]
