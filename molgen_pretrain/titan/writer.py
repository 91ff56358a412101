"""Writing a distributed checkpoint with one tensor in memory at a time.

PyTorch's own writer (2.13) keeps every tensor that it has written until the file is complete. The file is simple:
what torch.save makes of each entry, one after another; `.metadata` has where each begins.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from molgen_pretrain.titan.lazy import LazyTensor
from molgen_pretrain.titan.metadata import METADATA_FILE

_DATA_FILE = "__0_0.distcp"  # as rank 0 of one calls its first


def write_dcp(folder: Path, entries: Mapping[str, Any]) -> None:
    """Write tensors and plain values to a folder that does not exist; the metadata, last, makes it a checkpoint.

    Raises:
        OSError: the storage refused.
    """
    folder.mkdir(parents=True)
    metadata = Metadata(state_dict_metadata={}, planner_data={}, storage_data={}, storage_meta=StorageMeta())
    with (folder / _DATA_FILE).open("xb") as file:
        for name, entry in entries.items():
            is_tensor = isinstance(entry, LazyTensor)
            start = file.tell()
            torch.save(_alone(entry.read()) if is_tensor else entry, file)
            origin = torch.Size([0] * len(entry.shape)) if is_tensor else None
            place = _StorageInfo(_DATA_FILE, start, file.tell() - start)
            metadata.storage_data[MetadataIndex(name, origin, 0 if is_tensor else None)] = place
            metadata.state_dict_metadata[name] = _describe(entry) if is_tensor else BytesStorageMetadata()
            metadata.planner_data[name] = (name,)
        _sync(file)
    with (folder / METADATA_FILE).open("xb") as file:
        pickle.dump(metadata, file)
        _sync(file)


def _describe(tensor: LazyTensor) -> TensorStorageMetadata:
    whole = ChunkStorageMetadata(torch.Size([0] * len(tensor.shape)), torch.Size(tensor.shape))
    return TensorStorageMetadata(TensorProperties(tensor.dtype), torch.Size(tensor.shape), [whole])


def _alone(tensor: Tensor) -> Tensor:
    """torch.save writes all of the memory that a tensor is a part of."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
