"""safetensors files of a Hugging Face folder, written tensor by tensor: never more than one has to be in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from molgen_pretrain.errors import UserError
from molgen_pretrain.model.hf_snapshot import INDEX_FILE

EXPORT_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_DTYPE_NAMES = {torch.bfloat16: "BF16", torch.float32: "F32"}


@dataclass(frozen=True)
class FilePlan:
    """Which tensors, by name and shape, stand in which file, in which order; all in one dtype."""

    dtype: torch.dtype
    shapes: Mapping[str, tuple[int, ...]]
    files: Mapping[str, list[str]]

    @property
    def order(self) -> list[str]:
        """The names as they are written, file after file."""
        return [name for names in self.files.values() for name in names]

    @property
    def total_bytes(self) -> int:
        return sum(map(self.bytes_of, self.shapes))

    def bytes_of(self, name: str) -> int:
        return prod(self.shapes[name]) * self.dtype.itemsize


def plan_files(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, max_shard_size: str) -> FilePlan:
    """One file, or several of at most `max_shard_size` ("2GB") where a tensor fits in.

    Raises UserError for a size that is none.
    """
    unwritten = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}
    try:
        split = split_torch_state_dict_into_shards(unwritten, max_shard_size=max_shard_size)
    except ValueError as error:
        raise UserError(f"max_shard_size={max_shard_size}: no size; give one like 500MB or 2GB") from error
    return FilePlan(dtype, shapes, split.filename_to_tensors)


def write_weights(folder: Path, plan: FilePlan, tensors: Iterator[Iterable[Tensor]]) -> None:
    """Write the files, and an index where there are several.

    `tensors` gives every tensor of `plan.order` in pieces, first to last along dim 0, on the CPU in any float dtype;
    each is written before the next is asked for. Raises OSError where the storage refuses, ValueError where pieces
    are not of the plan's size.
    """
    for filename, names in plan.files.items():
        with open(folder / filename, "xb") as file:
            file.write(_header(plan, names))
            for name, pieces in zip(names, tensors, strict=False):  # the tensors go on in the next file
                written = sum(file.write(_bytes(piece.to(plan.dtype))) for piece in pieces)
                if written != plan.bytes_of(name):
                    raise ValueError(f"{name}: {written} bytes for a shape of {list(plan.shapes[name])}")
    if len(plan.files) > 1:
        places = {name: filename for filename, names in plan.files.items() for name in names}
        index = {"metadata": {"total_size": plan.total_bytes}, "weight_map": places}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _header(plan: FilePlan, names: list[str]) -> bytes:
    """What stands before the data (https://huggingface.co/docs/safetensors, "Format")."""
    content: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + plan.bytes_of(name)
        content[name] = {
            "dtype": _DTYPE_NAMES[plan.dtype],
            "shape": list(plan.shapes[name]),
            "data_offsets": [start, end],
        }
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(piece: Tensor) -> memoryview:
    return piece.contiguous().view(torch.uint8).numpy().data
