"""Which checkpoints stay, for what reason, and the deletion of the others."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from molgen_pretrain.checkpoint.commit import read_manifest
from molgen_pretrain.checkpoint.errors import CheckpointDamaged, CheckpointMismatch
from molgen_pretrain.checkpoint.files import sync_folder
from molgen_pretrain.checkpoint.layout import CheckpointLayout

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """What the rule knows of a committed checkpoint."""

    milestone: bool
    finite: bool | None
    """Whether its tensors were verified to be finite; None where nobody looked."""


def reasons_to_keep(candidates: Mapping[int, Candidate], keep_latest_k: int) -> dict[int, list[str]]:
    """Step -> why it stays, for every step; the list is empty where it may go. Pure.

    Kept are the newest `keep_latest_k` (0 keeps all), every milestone, and the newest that was verified
    finite. The newest of all is always among them, so a run never loses its only checkpoint.

    Args:
        candidates: committed checkpoints by step.
        keep_latest_k: how many of the newest to keep, milestones counted; 0 or more.

    Raises:
        ValueError: `keep_latest_k` is negative.
    """
    if keep_latest_k < 0:
        raise ValueError(f"keep_latest_k={keep_latest_k}: must be 0 (keep all) or more")
    newest = set(sorted(candidates)[-keep_latest_k:])  # [-0:] is all of them
    last_finite = max((step for step, candidate in candidates.items() if candidate.finite), default=None)
    reasons = {
        step: {
            "newest": step in newest,
            "milestone": candidate.milestone,
            "last finite": step == last_finite,
        }
        for step, candidate in sorted(candidates.items())
    }
    return {step: [reason for reason, holds in found.items() if holds] for step, found in reasons.items()}


def retire(
    layout: CheckpointLayout, step: int, *, keep_latest_k: int, milestones: Collection[int], damaged: Collection[int]
) -> None:
    """After the commit of `step`, delete what has no reason to stay.

    Steps ahead of this one are not this training's to count; damaged ones are left for a person to see.

    Raises:
        OSError: something could not be deleted.
    """
    candidates = {}
    for older in layout.committed_steps():
        if older > step or older in damaged:
            continue
        try:
            manifest = read_manifest(layout.folder(older))
        except (CheckpointDamaged, CheckpointMismatch) as unreadable:
            logger.warning("%s\nIt is kept, since it may be a milestone.", unreadable)
        else:
            candidates[older] = Candidate(older in milestones or manifest.milestone, manifest.finite)
    for old, reasons in reasons_to_keep(candidates, keep_latest_k).items():
        if not reasons:
            # Renamed first: a kill while its files go must not leave something that looks committed.
            hidden = layout.folder(old).rename(layout.deleted_folder(old))
            sync_folder(layout.root)
            shutil.rmtree(hidden)
