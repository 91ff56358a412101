"""Writing one checkpoint: every rank its shards, rank 0 the rest, one rename."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from molgen_pretrain.checkpoint.commit import Manifest, publish, write_manifest
from molgen_pretrain.checkpoint.errors import CheckpointSaveError, listing
from molgen_pretrain.checkpoint.files import encode_json, write_bytes
from molgen_pretrain.checkpoint.layout import (
    OPTIMIZER_FILE,
    STATE_FILE,
    TENSORS_FILE,
    CheckpointLayout,
    shard_file,
)
from molgen_pretrain.checkpoint.planning import Planner
from molgen_pretrain.checkpoint.ranks import RankFailure, Ranks
from molgen_pretrain.checkpoint.shards import local_part
from molgen_pretrain.checkpoint.state import named_state
from molgen_pretrain.checkpoint.storage import TensorFile, write_tensors

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PendingSave:
    """What a save writes once collected: this rank's tensors, and the documents that rank 0 writes.

    The tensors are the live ones: write before training goes on, or copy them first.
    """

    step: int
    milestone: bool
    tensors: dict[str, Tensor]
    documents: dict[str, bytes]


def collect(
    ranks: Ranks,
    planner: Planner,
    step: int,
    *,
    model: nn.Module,
    optimizer: Optimizer | None,
    state: Mapping[str, Any],
    milestone: bool,
) -> PendingSave:
    """Name everything and agree on who writes what. Collective; touches no storage.

    Raises:
        RankFailure: on every rank, if the state is not JSON.
        TypeError: the state of model or optimizer cannot be named.
        ValueError: on every rank, if the ranks hold different tensors.
    """
    named = named_state(model, optimizer)
    documents: dict[str, bytes] = {}

    def encode() -> None:
        if ranks.is_first:
            documents[STATE_FILE] = encode_json(dict(state))
            if optimizer is not None:
                documents[OPTIMIZER_FILE] = encode_json({"values": named.values, "param_groups": named.param_groups})

    plan = planner.plan(ranks, named.tensors, named.ties, beside=encode)
    documents[TENSORS_FILE] = plan.index
    return PendingSave(step, milestone, {name: local_part(named.tensors[name])[1] for name in plan.mine}, documents)


def write(ranks: Ranks, layout: CheckpointLayout, pending: PendingSave) -> Manifest:
    """Write and commit. Collective; nothing is left behind on failure.

    Raises:
        CheckpointSaveError: on every rank, if storage failed on any.
        RankFailure: on every rank, if anything else failed on any.
    """
    temporary: Path | None = None
    try:
        temporary = ranks.first(lambda: _prepare(layout, pending.step))
        path = temporary / shard_file(ranks.rank)
        written = ranks.together(lambda: write_tensors(path, pending.tensors))
        return ranks.first(lambda: _commit(layout, pending, path.parent, written))
    except RankFailure as failure:
        if temporary is not None and ranks.is_first:
            shutil.rmtree(temporary, ignore_errors=True)
        if failure.storage:
            raise CheckpointSaveError(
                f"checkpoint of step {pending.step} was not saved in {layout.root}: {failure}"
            ) from failure
        raise


def _prepare(layout: CheckpointLayout, step: int) -> Path:
    # Without parents: where a mount has vanished, nothing must grow on the disk below it.
    layout.root.mkdir(exist_ok=True)
    for leftover in layout.leftovers():
        logger.info("removing %s, left by a save or deletion that did not finish", leftover)
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = layout.temporary_folder(step)
    temporary.mkdir()
    return temporary


def _commit(layout: CheckpointLayout, pending: PendingSave, temporary: Path, written: list[TensorFile]) -> Manifest:
    files = {shard_file(rank): file.record for rank, file in enumerate(written)}
    for name, content in pending.documents.items():
        files[name] = write_bytes(temporary / name, [content])
    not_finite = sorted({name for file in written for name in file.not_finite})
    if not_finite:
        logger.warning("step %d is saved with NaN or infinity in:\n%s", pending.step, listing(not_finite))
    manifest = Manifest(
        step=pending.step,
        milestone=pending.milestone,
        world_size=len(written),
        torch_version=torch.__version__,
        files=files,
        finite=not not_finite,
        saved_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    write_manifest(temporary, manifest)
    _replace(layout, pending.step, temporary)
    return manifest


def _replace(layout: CheckpointLayout, step: int, temporary: Path) -> None:
    """Publish; what stands under the name already makes room, and comes back if publishing fails."""
    final = layout.folder(step)
    if not final.exists():
        publish(temporary, final)
        return
    logger.warning("replacing %s: damaged, or not of this training's past", final)
    hidden = final.rename(layout.deleted_folder(step))
    try:
        publish(temporary, final)
    except OSError:
        if not final.exists():
            hidden.rename(final)
        raise
    shutil.rmtree(hidden, ignore_errors=True)
