"""The manifest: what makes a folder a checkpoint, and how its files are checked against it.

Protocol of a save: all files are written and synced in a hidden folder, the manifest last; the folder is
renamed once; the parent is synced. A kill at any instruction leaves the old state or the new one.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from molgen_pretrain.checkpoint.errors import CheckpointDamaged, CheckpointMismatch
from molgen_pretrain.checkpoint.files import FileRecord, encode_json, hash_file, sync_folder, write_bytes
from molgen_pretrain.checkpoint.layout import MANIFEST_FILE, is_data_file, step_of

FORMAT_VERSION = 2


@dataclass(frozen=True)
class Manifest:
    """What a committed checkpoint consists of. Milestones are never deleted by retention."""

    step: int
    milestone: bool
    world_size: int
    torch_version: str
    files: dict[str, FileRecord]
    finite: bool | None = None
    """Whether no tensor held a NaN or an infinity when it was written; format 1 did not look."""
    saved_at: str | None = None
    """UTC, ISO 8601; format 1 did not say."""
    format_version: int = FORMAT_VERSION

    @property
    def total_bytes(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(record.bytes for record in self.files.values())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest with a digest of itself, then sync the folder that now holds everything."""
    content = {**asdict(manifest), "files": {name: record.to_json() for name, record in manifest.files.items()}}
    write_bytes(folder / MANIFEST_FILE, [encode_json({**content, "digest": _digest(content)})])
    sync_folder(folder)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a committed checkpoint.

    Raises:
        CheckpointDamaged: it is missing, unreadable, altered, of another step than the folder's name says, or
            names files that no checkpoint has.
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
        if unknown := [name for name in content["files"] if not is_data_file(name)]:
            raise ValueError(f"it names files that are none of a checkpoint's: {unknown}")
        files = {name: FileRecord.from_json(record) for name, record in content.pop("files").items()}
        manifest = Manifest(**content, files=files)
        if step_of(folder) not in (None, manifest.step):
            raise ValueError(f"it is of step {manifest.step}")
    except CheckpointMismatch:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointDamaged(folder, [f"{MANIFEST_FILE}: {type(error).__name__}: {error}"]) from error
    return manifest


def find_problems(
    folder: Path, manifest: Manifest, names: Sequence[str] | None = None, *, checksums: bool = True
) -> list[str]:
    """What is wrong with the files (all, or the named ones): one line each, empty when sound."""
    problems = []
    for name in manifest.files if names is None else names:
        expected = manifest.files[name]
        try:
            status = (folder / name).stat()
            if not stat.S_ISREG(status.st_mode):  # a pipe would block whoever opens it
                problems.append(f"{name}: no regular file")
            elif status.st_size != expected.bytes:
                problems.append(f"{name}: {status.st_size} bytes, {expected.bytes} were written")
            elif checksums and hash_file(folder / name, expected.algorithm) != expected:
                problems.append(f"{name}: its checksum is not the one written")
        except OSError as error:
            problems.append(f"{name}: {error.strerror}")
    return problems


def publish(temporary: Path, final: Path) -> None:
    """Give a complete folder its committed name, durably."""
    temporary.rename(final)
    sync_folder(final.parent)


def _digest(content: dict[str, Any]) -> str:
    return blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
