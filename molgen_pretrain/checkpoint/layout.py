"""Names and paths: the only place that spells what a checkpoint is called on disk."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from pathlib import Path

MANIFEST_FILE = "manifest.json"
TENSORS_FILE = "tensors.json"
STATE_FILE = "state.json"
OPTIMIZER_FILE = "optimizer.json"

_COMMITTED = re.compile(r"step-(\d{8,})")
_LEFTOVER = re.compile(r"\.step-\d{8,}\.(tmp|deleted)-[0-9a-f]+")
_SHARD = re.compile(r"rank-[0-9]{5,}\.safetensors")


def shard_file(rank: int) -> str:
    """The safetensors file which one rank writes."""
    return f"rank-{rank:05d}.safetensors"


def is_data_file(name: str) -> bool:
    """Whether a manifest may name this file. Nothing else is ever opened, whatever a manifest says."""
    return name in (TENSORS_FILE, STATE_FILE, OPTIMIZER_FILE) or _SHARD.fullmatch(name) is not None


def step_of(folder: Path) -> int | None:
    """The step a folder's name stands for, or None where it is no checkpoint's name."""
    match = _COMMITTED.fullmatch(folder.name)
    return int(match.group(1)) if match else None


@dataclass(frozen=True)
class CheckpointLayout:
    """All paths below one run's `checkpoint/` directory."""

    root: Path

    def folder(self, step: int) -> Path:
        """Where the committed checkpoint of a step stands."""
        return self.root / f"step-{step:08d}"

    def temporary_folder(self, step: int) -> Path:
        """A fresh hidden name to write a step under; a new one at each call."""
        return self._hidden(step, "tmp")

    def deleted_folder(self, step: int) -> Path:
        """A fresh hidden name for a checkpoint on its way out, so that a half-deleted one is never loaded."""
        return self._hidden(step, "deleted")

    def committed_steps(self) -> list[int]:
        """Steps with a manifest under their final name, ascending; everything else is ignored."""
        if not self.root.is_dir():
            return []
        steps = ((step_of(entry), entry) for entry in self.root.iterdir())
        return sorted(step for step, entry in steps if step is not None and (entry / MANIFEST_FILE).is_file())

    def leftovers(self) -> list[Path]:
        """What killed saves and deletions left behind. Do not touch while another process saves here."""
        if not self.root.is_dir():
            return []
        return sorted(entry for entry in self.root.iterdir() if _LEFTOVER.fullmatch(entry.name))

    def _hidden(self, step: int, purpose: str) -> Path:
        return self.root / f".step-{step:08d}.{purpose}-{secrets.token_hex(6)}"
