"""Reading one checkpoint: verify first, compare with the program, then fill in place."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import nn
from torch.optim import Optimizer

from molgen_pretrain.checkpoint import match
from molgen_pretrain.checkpoint.commit import find_problems, read_manifest
from molgen_pretrain.checkpoint.errors import CheckpointDamaged, CheckpointMismatch
from molgen_pretrain.checkpoint.layout import OPTIMIZER_FILE, STATE_FILE, TENSORS_FILE, shard_file
from molgen_pretrain.checkpoint.ranks import RankFailure, Ranks
from molgen_pretrain.checkpoint.shards import StoredTensor
from molgen_pretrain.checkpoint.state import (
    MODEL_PREFIX,
    OPTIMIZER_PREFIX,
    match_optimizer_state,
    named_state,
    restore_hyperparameters,
    restore_values,
)
from molgen_pretrain.checkpoint.storage import index_from_json, read_tensors

T = TypeVar("T")


@dataclass(frozen=True)
class SavedOptimizer:
    """What a checkpoint holds of an optimizer beside tensors."""

    values: dict[str, Any]
    param_groups: list[dict[str, Any]]

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> SavedOptimizer:
        """Raises KeyError or TypeError where the document is not of the form that is written."""
        groups = [{**group, "params": list(group["params"])} for group in content["param_groups"]]
        return cls(dict(content["values"]), groups)


@dataclass(frozen=True)
class Contents:
    """The JSON half of a checkpoint."""

    tensors: dict[str, StoredTensor]
    ties: dict[str, str]
    state: dict[str, Any]
    optimizer: SavedOptimizer | None
    """None where only a model was saved."""
    finite: bool | None
    """Whether the tensors were verified to be finite; None where nobody looked."""


def verify(ranks: Ranks, folder: Path, *, checksums: bool) -> None:
    """Check all files against the manifest, the ranks sharing the work. Collective.

    Raises:
        CheckpointDamaged: on every rank, listing the files.
    """
    reports = ranks.together(lambda: _examine(folder, ranks, checksums))
    problems = sorted({line for report in reports for line in report})
    if problems:
        raise CheckpointDamaged(folder, problems)


def read_contents(ranks: Ranks, folder: Path) -> Contents:
    """The documents of a verified checkpoint, read once and handed to every rank. Collective."""
    return _undamaged(folder, lambda: ranks.first(lambda: _parse(folder)))


def fill(
    ranks: Ranks,
    folder: Path,
    contents: Contents,
    *,
    model: nn.Module,
    optimizer: Optimizer | None,
    hyperparameters: bool,
) -> None:
    """Copy the checkpoint into model and optimizer, each rank reading what its shards need. Collective.

    Args:
        hyperparameters: also set the parameter groups' lr, betas and so on to the saved ones.

    Raises:
        CheckpointMismatch: it does not fit; the weights are untouched.
        CheckpointDamaged: a file could not be read after all; the state is half filled.
    """
    unknown = [name for name in contents.tensors if not name.startswith((MODEL_PREFIX, OPTIMIZER_PREFIX))]
    match.check_names(folder, unknown, [], "tensor")
    weights = {name: entry for name, entry in contents.tensors.items() if name.startswith(MODEL_PREFIX)}
    present = named_state(model, None)
    match.check_ties(folder, contents.ties, present.ties)
    match.check_tensors(folder, weights, present.tensors)
    stored, targets = weights, present.tensors
    if optimizer is not None:
        _prepare_optimizer(folder, contents, model, optimizer, hyperparameters)
        stored, targets = contents.tensors, named_state(model, optimizer).tensors
        match.check_tensors(folder, stored, targets)
    _undamaged(folder, lambda: ranks.together(lambda: read_tensors(folder, stored, targets)))


def _examine(folder: Path, ranks: Ranks, checksums: bool) -> list[str]:
    try:
        manifest = read_manifest(folder)
    except CheckpointDamaged as damage:
        return damage.problems
    share = sorted(manifest.files)[ranks.rank :: ranks.world_size]
    return find_problems(folder, manifest, share, checksums=checksums)


def _parse(folder: Path) -> Contents:
    # Only what the manifest names was verified; other files in the folder are never looked at.
    manifest = read_manifest(folder)

    def document(name: str) -> dict[str, Any]:
        content = json.loads((folder / name).read_bytes())
        if name not in manifest.files or not isinstance(content, dict):
            raise ValueError(f"{name} is not in the manifest, or holds no object")
        return content

    index = document(TENSORS_FILE)
    tensors = index_from_json(index["tensors"])
    if (
        unverified := {shard_file(rank) for entry in tensors.values() for rank, _ in entry.parts}
        - manifest.files.keys()
    ):
        raise ValueError(f"{TENSORS_FILE} refers to files that are not in the manifest: {sorted(unverified)}")
    return Contents(
        tensors=tensors,
        ties=dict(index["ties"]),
        state=document(STATE_FILE),
        optimizer=SavedOptimizer.from_json(document(OPTIMIZER_FILE)) if OPTIMIZER_FILE in manifest.files else None,
        finite=manifest.finite,
    )


def _prepare_optimizer(
    folder: Path, contents: Contents, model: nn.Module, optimizer: Optimizer, hyperparameters: bool
) -> None:
    """Make the optimizer hold the kinds of state that the checkpoint holds, and set all but its tensors."""
    if contents.optimizer is None:
        raise CheckpointMismatch(
            f"checkpoint {folder} holds no optimizer; it can only start a new training (model only)"
        )
    saved, values = contents.optimizer.param_groups, contents.optimizer.values
    groups = named_state(model, optimizer).param_groups
    match.check_names(folder, _members(saved), _members(groups), "trained parameter")
    with_state = {name for name in contents.tensors if not name.startswith(MODEL_PREFIX)} | values.keys()
    match_optimizer_state(model, optimizer, with_state)
    match.check_names(folder, values, named_state(model, optimizer).values, "optimizer value")
    restore_values(model, optimizer, values)
    if hyperparameters:
        match.check_groups(folder, saved, groups)
        restore_hyperparameters(optimizer, saved)


def _members(groups: list[dict[str, Any]]) -> set[str]:
    return {name for group in groups for name in group["params"]}


def _undamaged(folder: Path, read: Callable[[], T]) -> T:
    """A file that passed its checks and cannot be read is damage all the same."""
    try:
        return read()
    except RankFailure as failure:
        raise CheckpointDamaged(folder, [str(failure)]) from failure
