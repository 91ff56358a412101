"""Does a checkpoint belong to this program? Everything that differs is listed; nothing is dropped quietly."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from molgen_pretrain.checkpoint.errors import CheckpointMismatch, listing
from molgen_pretrain.checkpoint.shards import StoredTensor


def check_tensors(folder: Path, stored: Mapping[str, StoredTensor], targets: Mapping[str, Tensor]) -> None:
    """Every stored tensor has a target of the same name, shape and dtype, and the reverse.

    Raises:
        CheckpointMismatch: listing each difference.
    """
    _refuse(folder, [*_one_sided(stored, targets), *_unlike(stored, targets)])


def check_ties(folder: Path, stored: Mapping[str, str], present: Mapping[str, str]) -> None:
    """The same tensors are shared under the same names; an untied head would otherwise stay unfilled."""
    lines = [
        f"{name}: shared with {stored.get(name, 'nothing')} in the checkpoint, "
        f"with {present.get(name, 'nothing')} in the program"
        for name in sorted(stored.keys() | present.keys())
        if stored.get(name) != present.get(name)
    ]
    _refuse(folder, lines)


def check_names(folder: Path, stored: Collection[str], present: Collection[str], what: str) -> None:
    """Both sides have the same names of something that is not a tensor."""
    _refuse(folder, [f"{what} {line}" for line in _one_sided(stored, present)])


def check_groups(folder: Path, stored: list[dict[str, Any]], present: list[dict[str, Any]]) -> None:
    """Parameter groups hold the same parameters, so that hyper-parameters can be restored group by group."""
    ours, theirs = ([sorted(group["params"]) for group in groups] for groups in (present, stored))
    if ours != theirs:
        _refuse(folder, [f"{len(theirs)} parameter groups stored, {len(ours)} (or with other members) here"])


def _one_sided(stored: Collection[str], present: Collection[str]) -> Iterator[str]:
    yield from (f"{name}: only in the checkpoint" for name in sorted(set(stored) - set(present)))
    yield from (f"{name}: only in the program" for name in sorted(set(present) - set(stored)))


def _unlike(stored: Mapping[str, StoredTensor], targets: Mapping[str, Tensor]) -> Iterator[str]:
    for name in sorted(stored.keys() & targets.keys()):
        there = stored[name].dtype, stored[name].shape
        here = targets[name].dtype, tuple(targets[name].shape)
        if there != here:
            yield f"{name}: {there[0]} {there[1]} in the checkpoint, {here[0]} {here[1]} in the program"


def _refuse(folder: Path, lines: list[str]) -> None:
    if lines:
        raise CheckpointMismatch(f"checkpoint {folder} does not fit this model and optimizer:\n{listing(lines)}")
