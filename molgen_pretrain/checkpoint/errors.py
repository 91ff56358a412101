"""What can go wrong with a checkpoint, told apart by what the caller can do about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from molgen_pretrain.errors import UserError

_LISTED = 12


def listing(lines: Sequence[str]) -> str:
    """The first lines, indented, and how many more there are."""
    shown = [f"  {line}" for line in lines[:_LISTED]]
    if len(lines) > _LISTED:
        shown.append(f"  ... and {len(lines) - _LISTED} more")
    return "\n".join(shown)


class CheckpointDamaged(UserError):
    """The files of a committed checkpoint are not what its manifest says: an older one may serve."""

    def __init__(self, folder: Path, problems: Sequence[str]) -> None:
        self.folder = folder
        self.problems = list(problems)
        super().__init__(f"checkpoint {folder} is damaged:\n{listing(self.problems)}")


class CheckpointMismatch(UserError):
    """The checkpoint is sound but belongs to another program: other names, shapes or dtypes."""


class CheckpointSaveError(RuntimeError):
    """A save failed on the storage side (full disk, lost mount, read-only); training itself is unharmed.

    Raised on every rank of the group, whichever rank failed; nothing was committed.
    """
