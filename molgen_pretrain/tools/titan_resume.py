"""A TorchTitan checkpoint as one of ours, from which training goes on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from molgen_pretrain.checkpoint.layout import CheckpointLayout
from molgen_pretrain.checkpoint.state import MODEL_PREFIX, OPTIMIZER_PREFIX
from molgen_pretrain.data.position import SourcePosition
from molgen_pretrain.titan.checkpoint import TitanCheckpoint, TitanProgress
from molgen_pretrain.titan.lazy import LazyTensor
from molgen_pretrain.titan.names import EMBEDDING, HEAD
from molgen_pretrain.tools.lazy_checkpoint import write_checkpoint

Moments = Mapping[str, Mapping[str, LazyTensor]]
Settings = Mapping[str, Mapping[str, Any]]


def resumable_state(progress: TitanProgress, *, tokens: int | None, sequences: int | None) -> dict[str, Any]:
    """state.json of the checkpoint. Its schedule is none of ours: going on with another is to be asked for.

    Args:
        tokens: trained on by all ranks; None: what TorchTitan counted, times its ranks.
        sequences: how many of our data's order to pass over; None: none, and no count of them either.
    """
    counted = progress.tokens_per_rank * (progress.data_ranks or 1)
    position = {} if sequences is None else asdict(SourcePosition(offset=sequences, sequences=sequences))
    return {
        "progress": {
            "step": progress.step,
            "tokens": counted if tokens is None else tokens,
            "sequences": sequences or 0,
            "position": position,
        },
        "schedule": {"schedule": "TorchTitan"},
        "optimizer_groups": {},
        "data_order": None,
        "data": {},
    }


def write_resumable(
    layout: CheckpointLayout,
    source: TitanCheckpoint,
    moments: Moments,
    settings: Settings,
    state: Mapping[str, Any],
    *,
    max_bytes: int,
) -> Path:
    """Commit weights, AdamW's state and `state`; returns the folder. Everything becomes float32, as we train."""
    tensors = {MODEL_PREFIX + name: weight for name, weight in source.weights.items()}
    for name, parts in moments.items():
        tensors |= {f"{OPTIMIZER_PREFIX}{name}.{key}": part for key, part in parts.items()}
    tied = source.sizes.tie_word_embeddings
    return write_checkpoint(
        layout,
        state["progress"]["step"],
        {name: tensor.to(torch.float32) for name, tensor in tensors.items()},
        ties={MODEL_PREFIX + HEAD: MODEL_PREFIX + EMBEDDING} if tied else {},
        optimizer={"values": {}, "param_groups": groups_of(source.weights, settings)},
        state=state,
        max_bytes=max_bytes,
    )


def groups_of(names: Iterable[str], settings: Settings) -> list[dict[str, Any]]:
    """Parameter groups as a checkpoint of ours stores them: weights with the same settings are together."""
    members: dict[str, list[str]] = defaultdict(list)
    for name in names:
        members[repr(settings.get(name, {}))].append(name)
    return [{**settings.get(group[0], {}), "params": group} for group in members.values()]
