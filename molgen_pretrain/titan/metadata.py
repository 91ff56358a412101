"""`.metadata` of a distributed checkpoint: a pickle, read by a reader that knows the few classes such a file needs.

What it builds from them are plain records. Anything else that the pickle names is refused before it is looked up.
"""

from __future__ import annotations

import io
import pathlib
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.serialization import _get_layout

from molgen_pretrain.errors import UserError

METADATA_FILE = ".metadata"

_CLASSES: dict[tuple[str, str], Any] = {
    **{
        (dcp.__name__, kind.__name__): kind
        for kind in (
            dcp.BytesStorageMetadata,
            dcp.ChunkStorageMetadata,
            dcp.Metadata,
            dcp.MetadataIndex,
            dcp.StorageMeta,
            dcp.TensorProperties,
            dcp.TensorStorageMetadata,
            dcp._MEM_FORMAT_ENCODING,
        )
    },
    (_StorageInfo.__module__, _StorageInfo.__name__): _StorageInfo,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): _get_layout,
    # The folder that it was saved to. Python 3.13 calls the module otherwise.
    ("pathlib", "PosixPath"): pathlib.PurePosixPath,
    ("pathlib._local", "PosixPath"): pathlib.PurePosixPath,
}


@dataclass(frozen=True)
class Place:
    """Where something lies: so many bytes of a file in the checkpoint's folder."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class Chunk:
    """An axis-aligned part of a tensor."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    place: Place


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in chunks, which are not checked yet to make it up."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds, by name. A blob is a pickled value of any kind."""

    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    blobs: dict[str, Place] = field(default_factory=dict)


def read_contents(folder: Path) -> Contents:
    """Read `.metadata`.

    Raises:
        UserError: the folder has none, or it is no such file, or one that asks for code to be run.
    """
    path = folder / METADATA_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a step-N folder of a TorchTitan run") from error
    try:
        return _contents(_MetadataUnpickler(io.BytesIO(content)).load())
    except _ForbiddenError as error:
        raise UserError(f"{path}: refused: {error}, which no checkpoint's metadata needs") from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise UserError(f"{path}: damaged, or no distributed checkpoint: {type(error).__name__}: {error}") from error


class _ForbiddenError(pickle.UnpicklingError):
    """The pickle names something that is not on the list."""


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _CLASSES:
            return _CLASSES[module, name]
        if module == "torch" and isinstance(torch.__dict__.get(name), torch.dtype):
            return torch.__dict__[name]
        raise _ForbiddenError(f"it names {module}.{name}")


def _contents(metadata: dcp.Metadata) -> Contents:
    places = {(index.fqn, index.offset): _place(info) for index, info in metadata.storage_data.items()}
    contents = Contents()
    for name, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, dcp.TensorStorageMetadata):
            chunks = (Chunk(tuple(c.offsets), tuple(c.sizes), places[name, c.offsets]) for c in entry.chunks)
            contents.tensors[name] = StoredTensor(entry.properties.dtype, tuple(entry.size), tuple(chunks))
        else:
            contents.blobs[name] = places[name, None]
    return contents


def _place(info: _StorageInfo) -> Place:
    if info.transform_descriptors:
        raise ValueError(f"{info.relative_path} is transformed by {', '.join(info.transform_descriptors)}")
    if pathlib.PurePath(info.relative_path).name != info.relative_path:
        raise ValueError(f"it leads out of its folder: {info.relative_path}")
    if type(info.offset) is not int or type(info.length) is not int or min(info.offset, info.length) < 0:
        raise ValueError(f"it has no place for a part of {info.relative_path}")
    return Place(info.relative_path, info.offset, info.length)
