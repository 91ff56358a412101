"""From what a user wrote for a data path to the list of files, and the identity a cache is keyed by."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from molgen_pretrain.errors import UserError

DataPath = str | os.PathLike[str]

_FIX = "give a .jsonl file, a folder of them, a glob, or a list of these"


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """A file as the one-time pass saw it; a different size or time means different content."""

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> FileIdentity:
        status = path.stat()
        return cls(str(path), status.st_size, status.st_mtime_ns)


def resolve_files(path: DataPath | Sequence[DataPath], setting: str = "data.train_path") -> list[Path]:
    """The absolute paths of the files behind a file, a folder, a glob, or a list of those, in data order.

    A folder stands for its own `*.jsonl` files sorted by name, a glob for its matches sorted by path; a list
    keeps its order. The order matters: it numbers the lines. Raises UserError for what is missing, empty,
    unreadable, or named twice.
    """
    entries = [path] if isinstance(path, str | os.PathLike) else list(path)
    if not entries:
        raise UserError(f"{setting}=[]: no data path; {_FIX}")
    files = [file for entry in entries for file in _resolve_entry(os.fspath(entry), setting)]
    seen: set[Path] = set()
    for file in files:
        if file in seen:
            raise UserError(f"{setting}: {file} is named twice; every file may be given once")
        seen.add(file)
        _check_readable(file, setting)
    return files


def _resolve_entry(entry: str, setting: str) -> list[Path]:
    # os.path.abspath, not Path.resolve: a link keeps the name that the user knows.
    path = Path(os.path.abspath(os.path.expanduser(entry)))
    if not entry.strip():
        raise UserError(f"{setting}={entry!r}: empty path; {_FIX}")
    if path.is_dir():
        return _list_folder(path, setting)
    if path.exists():
        return [path]
    if glob.has_magic(entry):
        matches = sorted(glob.glob(str(path), recursive=True))
        files = [Path(match) for match in matches if not os.path.isdir(match)]
        if not files:
            raise UserError(f"{setting}={entry}: no file matches this glob; {_FIX}")
        return files
    raise UserError(f"{setting}={entry}: no such file or folder; {_FIX}")


def _list_folder(folder: Path, setting: str) -> list[Path]:
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".jsonl"))
    except PermissionError:
        raise UserError(f"{setting}={folder}: no permission to list this folder; {_FIX}") from None
    if not names:
        raise UserError(f"{setting}={folder}: no *.jsonl file in this folder; {_FIX}")
    return [folder / name for name in names]


def _check_readable(file: Path, setting: str) -> None:
    try:
        mode = file.stat().st_mode
    except OSError as error:
        raise UserError(f"{setting}={file}: {error.strerror}; {_FIX}") from None
    if not stat.S_ISREG(mode):
        raise UserError(f"{setting}={file}: not a regular file; {_FIX}")
    if not os.access(file, os.R_OK):
        raise UserError(f"{setting}={file}: no permission to read this file; make it readable for this user")
