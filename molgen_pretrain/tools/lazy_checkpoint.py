"""Our own checkpoints, written and read a tensor at a time, by one process and without a model."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from molgen_pretrain.checkpoint.commit import Manifest, publish, write_manifest
from molgen_pretrain.checkpoint.files import FileRecord, encode_json, write_bytes
from molgen_pretrain.checkpoint.layout import (
    OPTIMIZER_FILE,
    STATE_FILE,
    TENSORS_FILE,
    CheckpointLayout,
    shard_file,
)
from molgen_pretrain.checkpoint.loading import Contents, read_contents, verify
from molgen_pretrain.checkpoint.ranks import Ranks
from molgen_pretrain.checkpoint.shards import Box, StoredTensor
from molgen_pretrain.checkpoint.storage import index_to_json, read_tensors, write_tensors
from molgen_pretrain.titan.lazy import LazyTensor, split_into_shards


def write_checkpoint(
    layout: CheckpointLayout,
    step: int,
    tensors: Mapping[str, LazyTensor],
    *,
    ties: Mapping[str, str],
    optimizer: Mapping[str, Any],
    state: Mapping[str, Any],
    max_bytes: int,
) -> Path:
    """Commit a checkpoint of these tensors and documents, as `Checkpointer.save` would; returns its folder.

    Tensors come in files of at most `max_bytes`, named as those of as many ranks; memory holds one of them.
    Raises OSError where storage fails; nothing is left then.
    """
    layout.root.mkdir(parents=True, exist_ok=True)
    temporary = layout.temporary_folder(step)
    temporary.mkdir()
    try:
        files: dict[str, FileRecord] = {}
        stored: dict[str, StoredTensor] = {}
        finite = True
        for rank, names in enumerate(split_into_shards(tensors, max_bytes)):
            written = write_tensors(temporary / shard_file(rank), {name: tensors[name].read() for name in names})
            files[shard_file(rank)] = written.record
            finite = finite and not written.not_finite
            stored |= {name: _in_one_part(tensors[name], rank) for name in names}
        documents = {
            TENSORS_FILE: {"tensors": index_to_json(stored), "ties": dict(ties)},
            OPTIMIZER_FILE: dict(optimizer),
            STATE_FILE: dict(state),
        }
        shards = len(files)
        files |= {name: write_bytes(temporary / name, [encode_json(content)]) for name, content in documents.items()}
        manifest = Manifest(
            step=step,
            milestone=False,
            world_size=shards,
            torch_version=torch.__version__,
            files=files,
            finite=finite,
            saved_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        write_manifest(temporary, manifest)
        publish(temporary, layout.folder(step))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return layout.folder(step)


def read_checkpoint(folder: Path) -> tuple[Contents, dict[str, LazyTensor]]:
    """The documents and tensors of a committed step, none of the tensors read yet.

    Raises:
        CheckpointDamaged: files are not what the manifest says; all are checked.
    """
    ranks = Ranks()
    verify(ranks, folder, checksums=True)
    contents = read_contents(ranks, folder)
    return contents, {name: _lazy(folder, name, stored) for name, stored in contents.tensors.items()}


def _in_one_part(tensor: LazyTensor, rank: int) -> StoredTensor:
    # Of what has no elements no part is stored.
    parts = ((rank, Box((0,) * len(tensor.shape), tensor.shape)),) if math.prod(tensor.shape) else ()
    return StoredTensor(tensor.dtype, tensor.shape, parts)


def _lazy(folder: Path, name: str, stored: StoredTensor) -> LazyTensor:
    def read() -> torch.Tensor:
        target = torch.empty(stored.shape, dtype=stored.dtype)
        read_tensors(folder, {name: stored}, {name: target})
        return target

    return LazyTensor(stored.dtype, stored.shape, read)
