"""Sharded, pickle-free checkpoints that are either wholly there or not there at all.

A checkpoint is a directory `step-00001000` of safetensors files (one per rank, each with the shards that
rank wrote) and JSON. It is written under a hidden name, described by a manifest with sizes and checksums,
and renamed once. Any layout loads what any other layout saved. `checkpointer.Checkpointer` is the door;
this module hands on what needs no torch: names and the errors.
"""

from __future__ import annotations

from molgen_pretrain.checkpoint.errors import CheckpointDamaged, CheckpointMismatch, CheckpointSaveError
from molgen_pretrain.checkpoint.layout import CheckpointLayout

__all__ = [
    "CheckpointDamaged",
    "CheckpointLayout",
    "CheckpointMismatch",
    "CheckpointSaveError",
]
