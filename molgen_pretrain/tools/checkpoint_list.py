"""Finding a run's checkpoints, and the table of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import RenderableType
from rich.text import Text

from molgen_pretrain.checkpoint.commit import Manifest, find_problems, read_manifest
from molgen_pretrain.checkpoint.errors import CheckpointDamaged, CheckpointMismatch
from molgen_pretrain.checkpoint.layout import CheckpointLayout, step_of
from molgen_pretrain.checkpoint.retention import Candidate, reasons_to_keep
from molgen_pretrain.errors import UserError
from molgen_pretrain.metrics.formats import format_bytes
from molgen_pretrain.tools.checkpoint_text import make_table

_YES_NO = {True: "yes", False: "NO", None: "?"}


@dataclass(frozen=True)
class Entry:
    """A step-* folder as it stands."""

    folder: Path
    manifest: Manifest | None
    """None where it cannot be read; `problems` says why."""
    problems: list[str]

    @property
    def step(self) -> int:
        return int(self.folder.name.rpartition("-")[2])


def find_steps(path: Path) -> list[Path]:
    """The step-* folders that `path` stands for, by ascending step; the one itself, or all of a run.

    Raises:
        UserError: there are none.
    """
    if path.is_dir() and step_of(path.absolute()) is not None:
        return [path]
    root = checkpoint_root(path)
    found = [entry for entry in root.iterdir() if step_of(entry) is not None and entry.is_dir()]
    if not found:
        raise UserError(f"{root}: no checkpoint has been committed here")
    return sorted(found, key=lambda folder: step_of(folder) or 0)


def checkpoint_root(path: Path) -> Path:
    """The folder of step-* folders of a run's directory, or `path` itself."""
    root = path / "checkpoint" if (path / "checkpoint").is_dir() else path
    if not root.is_dir():
        raise UserError(f"{path}: no such folder; give a run's directory, its checkpoint folder or a step-* folder")
    return root


def list_report(path: Path) -> Iterator[RenderableType]:
    """The table, every problem that sizes alone show, and what killed saves left behind."""
    entries = [_examine(folder) for folder in find_steps(path)]
    root = entries[0].folder.parent
    keep_latest_k = _keep_latest_k(root)
    kept = _reasons(entries, keep_latest_k)
    table = make_table(
        "step",
        "saved (UTC)",
        "size",
        "ranks",
        "milestone",
        "finite",
        "kept as",
        "files",
        right=("step", "size", "ranks"),
    )
    for entry in entries:
        table.add_row(f"{entry.step:,}", *_facts(entry.manifest), kept.get(entry.step, "-"), _state(entry))
    yield table
    for entry in entries:
        for line in entry.problems:
            yield Text(f"{entry.folder.name}/{line}")
    total = sum(entry.manifest.total_bytes for entry in entries if entry.manifest)
    rule = "unknown here: no config.yaml beside" if keep_latest_k is None else str(keep_latest_k)
    yield Text(f"{len(entries)} checkpoints, {format_bytes(total)} in {root}; checkpoint.keep_latest_k={rule}")
    if leftovers := CheckpointLayout(root).leftovers():
        yield Text(
            f"{len(leftovers)} unfinished saves or deletions (.step-*): one under way, or removed at the next save"
        )


def _examine(folder: Path) -> Entry:
    try:
        manifest = read_manifest(folder)
    except CheckpointDamaged as damage:
        return Entry(folder, None, damage.problems)
    except CheckpointMismatch as newer:
        return Entry(folder, None, [f"manifest.json: {newer}"])
    return Entry(folder, manifest, find_problems(folder, manifest, checksums=False))


def _facts(manifest: Manifest | None) -> tuple[str, ...]:
    if manifest is None:
        return "?", "?", "?", "?", "?"
    saved_at = (manifest.saved_at or "?")[:19].replace("T", " ")
    size = format_bytes(manifest.total_bytes)
    return saved_at, size, str(manifest.world_size), "yes" if manifest.milestone else "", _YES_NO[manifest.finite]


def _state(entry: Entry) -> Text:
    return Text("DAMAGED", style="bold red") if entry.problems else Text("all there")


def _reasons(entries: list[Entry], keep_latest_k: int | None) -> dict[int, str]:
    """What retention would say today. The run itself also knows milestones that are still to be marked."""
    candidates = {
        entry.step: Candidate(entry.manifest.milestone, entry.manifest.finite) for entry in entries if entry.manifest
    }
    reasons = reasons_to_keep(candidates, 1 if keep_latest_k is None else keep_latest_k)
    return {step: ", ".join(found) for step, found in reasons.items() if found}


def _keep_latest_k(root: Path) -> int | None:
    """From the run's resolved config; None where the folder has left its run."""
    try:
        content: Any = yaml.safe_load((root.parent / "config.yaml").read_text())
        return int(content["checkpoint"]["keep_latest_k"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return None
