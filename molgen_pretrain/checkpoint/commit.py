"""The manifest: what makes a folder a checkpoint, and how its files are checked against it.

Protocol of a save: all files are written and synced in a hidden folder, the manifest last; the folder is
renamed once; the parent is synced. A kill at any instruction leaves the old state or the new one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from molgen_pretrain.checkpoint.errors import CheckpointDamaged, CheckpointMismatch
from molgen_pretrain.checkpoint.layout import MANIFEST_FILE
from molgen_pretrain.checkpoint.storage import FileRecord, hash_file, write_json

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """What a committed checkpoint consists of. Milestones are never deleted by retention."""

    step: int
    milestone: bool
    world_size: int
    torch_version: str
    files: dict[str, FileRecord]
    format_version: int = FORMAT_VERSION


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest with a digest of itself, then sync the folder that now holds everything."""
    content = asdict(manifest)
    write_json(folder / MANIFEST_FILE, {**content, "digest": _digest(content)})
    sync_folder(folder)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a committed checkpoint.

    Raises:
        CheckpointDamaged: it is missing, unreadable or altered.
        CheckpointMismatch: a newer program wrote it.
    """
    try:
        content = json.loads((folder / MANIFEST_FILE).read_bytes())
        if content.pop("digest") != _digest(content):
            raise ValueError("its content does not match its own digest")
        if content["format_version"] > FORMAT_VERSION:
            raise CheckpointMismatch(
                f"checkpoint {folder} has format {content['format_version']}; this program reads up to "
                f"{FORMAT_VERSION}: use the newer program that wrote it"
            )
        files = {name: FileRecord(**record) for name, record in content.pop("files").items()}
        if outside := [name for name in files if Path(name).name != name]:
            raise ValueError(f"it names files outside its folder: {outside}")
        return Manifest(**content, files=files)
    except CheckpointMismatch:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointDamaged(folder, [f"{MANIFEST_FILE}: {type(error).__name__}: {error}"]) from error


def find_problems(
    folder: Path, manifest: Manifest, names: Sequence[str] | None = None, *, checksums: bool = True
) -> list[str]:
    """What is wrong with the files (all, or the named ones): one line each, empty when sound."""
    problems = []
    for name in manifest.files if names is None else names:
        expected = manifest.files[name]
        try:
            size = (folder / name).stat().st_size
            if size != expected.bytes:
                problems.append(f"{name}: {size} bytes, {expected.bytes} were written")
            elif checksums and hash_file(folder / name) != expected:
                problems.append(f"{name}: its checksum is not the one written")
        except OSError as error:
            problems.append(f"{name}: {error.strerror}")
    return problems


def publish(temporary: Path, final: Path) -> None:
    """Give a complete folder its committed name, durably."""
    temporary.rename(final)
    sync_folder(final.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(content: dict[str, Any]) -> str:
    return blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
