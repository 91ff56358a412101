"""Tensors on disk: safetensors files written in one pass, and reading just the boxes a layout needs.

Nothing here can execute code from a checkpoint: JSON and safetensors are the only formats.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from molgen_pretrain.checkpoint.files import CHUNK_BYTES, FileRecord, write_bytes
from molgen_pretrain.checkpoint.finite import all_finite
from molgen_pretrain.checkpoint.layout import shard_file
from molgen_pretrain.checkpoint.shards import Box, StoredTensor, local_part, tiles

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
class TensorFile:
    """A file of tensors as it was written, and which of them hold a NaN or an infinity."""

    record: FileRecord
    not_finite: list[str]


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> TensorFile:
    """Write local tensors of any device as one safetensors file, in pieces that are checked as they go.

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

    not_finite: dict[str, None] = {}

    def chunks() -> Iterator[Any]:
        yield len(text).to_bytes(8, "little") + text
        for name, tensor in ordered.items():
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            for piece in flat.split(CHUNK_BYTES // flat.itemsize):
                if not all_finite(piece):
                    not_finite[name] = None
                yield memoryview(piece.view(torch.uint8).numpy())

    record = write_bytes(path, chunks())
    return TensorFile(record, list(not_finite))


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
                    there = file.get_slice(name)
                    kind, shape = there.get_dtype(), tuple(there.get_shape())
                    if (kind, shape) != (dtype_name(local.dtype), part.sizes):
                        raise ValueError(f"{path.name}: {name} is {kind} {shape}, not what the index says")
                    data = file.get_tensor(name) if common == part else there[common.inside(part)]
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
    """The inverse of `index_to_json`.

    Raises:
        ValueError: the parts do not tile their tensor, so that some of it would stay unfilled.
        KeyError, TypeError, AttributeError: it is not of that form.
    """
    return {name: _stored_from_json(name, entry) for name, entry in content.items()}


def _stored_from_json(name: str, entry: Mapping[str, Any]) -> StoredTensor:
    shape = tuple(entry["shape"])
    parts = tuple((rank, Box(tuple(offsets), tuple(sizes))) for rank, offsets, sizes in entry["parts"])
    if not tiles(shape, [box for _, box in parts]):
        raise ValueError(f"the parts of {name} do not make up its shape {shape}")
    return StoredTensor(_DTYPES[entry["dtype"]], shape, parts)


def dtype_name(dtype: torch.dtype) -> str:
    """The safetensors name of a dtype."""
    if dtype not in DTYPE_NAMES:
        raise TypeError(f"{dtype} cannot be stored; storable: {', '.join(map(str, DTYPE_NAMES))}")
    return DTYPE_NAMES[dtype]
