"""Writing one checkpoint: every rank its shards, rank 0 the rest, one rename."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from molgen_pretrain.checkpoint.commit import Manifest, publish, write_manifest
from molgen_pretrain.checkpoint.errors import CheckpointSaveError
from molgen_pretrain.checkpoint.layout import (
    OPTIMIZER_FILE,
    STATE_FILE,
    TENSORS_FILE,
    CheckpointLayout,
    shard_file,
)
from molgen_pretrain.checkpoint.ranks import RankFailure, Ranks
from molgen_pretrain.checkpoint.shards import assign_writers, describe, local_part
from molgen_pretrain.checkpoint.state import named_state
from molgen_pretrain.checkpoint.storage import FileRecord, index_to_json, write_json, write_tensors

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PendingSave:
    """What a save writes once collected: this rank's tensors, and the documents that rank 0 writes.

    The tensors are the live ones: write before training goes on, or copy them first.
    """

    step: int
    milestone: bool
    tensors: dict[str, Tensor]
    documents: dict[str, Any]


def collect(
    ranks: Ranks,
    step: int,
    *,
    model: nn.Module,
    optimizer: Optimizer | None,
    state: Mapping[str, Any],
    milestone: bool,
) -> PendingSave:
    """Name everything and agree on who writes what. Collective; touches no storage.

    Raises:
        RankFailure: on every rank, if the state of one cannot be named.
        ValueError: on every rank, if the ranks hold different tensors.
    """
    named = named_state(model, optimizer)
    plan = assign_writers(ranks.together(lambda: describe(named.tensors)))
    mine = {
        name: local_part(named.tensors[name])[1]
        for name, stored in plan.items()
        if any(writer == ranks.rank for writer, _ in stored.parts)
    }
    documents: dict[str, Any] = {
        TENSORS_FILE: {"tensors": index_to_json(plan), "ties": named.ties},
        STATE_FILE: dict(state),
    }
    if optimizer is not None:
        documents[OPTIMIZER_FILE] = {"values": named.values, "param_groups": named.param_groups}
    return PendingSave(step, milestone, mine, documents)


def write(ranks: Ranks, layout: CheckpointLayout, pending: PendingSave) -> int:
    """Write and commit; return the bytes of all shards. Collective; nothing is left behind on failure.

    Raises:
        CheckpointSaveError: on every rank, if storage failed on any.
        RankFailure: on every rank, if anything else failed on any.
    """
    temporary: Path | None = None
    try:
        temporary = ranks.first(lambda: _prepare(layout, pending.step))
        path = temporary / shard_file(ranks.rank)
        records = ranks.together(lambda: write_tensors(path, pending.tensors))
        ranks.first(lambda: _commit(layout, pending, path.parent, records))
    except RankFailure as failure:
        if temporary is not None and ranks.is_first:
            shutil.rmtree(temporary, ignore_errors=True)
        if failure.storage:
            raise CheckpointSaveError(
                f"checkpoint of step {pending.step} was not saved in {layout.root}: {failure}"
            ) from failure
        raise
    return sum(record.bytes for record in records)


def _prepare(layout: CheckpointLayout, step: int) -> Path:
    layout.root.mkdir(parents=True, exist_ok=True)
    for leftover in layout.leftovers():
        logger.info("removing %s, left by a save or deletion that did not finish", leftover)
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = layout.temporary_folder(step)
    temporary.mkdir()
    return temporary


def _commit(layout: CheckpointLayout, pending: PendingSave, temporary: Path, records: list[FileRecord]) -> None:
    files = {shard_file(rank): record for rank, record in enumerate(records)}
    for name, content in pending.documents.items():
        files[name] = write_json(temporary / name, content)
    write_manifest(
        temporary,
        Manifest(
            step=pending.step,
            milestone=pending.milestone,
            world_size=len(records),
            torch_version=torch.__version__,
            files=files,
        ),
    )
    final = layout.folder(pending.step)
    replaced = None
    if final.exists():
        logger.warning("replacing %s: damaged, or not of this training's past", final)
        replaced = final.rename(layout.deleted_folder(pending.step))
    publish(temporary, final)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)
