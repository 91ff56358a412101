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

# What the last part of a name says about a compressed file (`decompress` unpacks it).
ARCHIVE_SUFFIXES = (".zst", ".gz")

_LISTED_SUFFIXES = (".jsonl", *(f".jsonl{suffix}" for suffix in ARCHIVE_SUFFIXES))
_FIX = "give a .jsonl, .jsonl.zst or .jsonl.gz file, a folder of them, a glob, or a list of these"


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """A file of lines as the one-time pass saw it; a different size or time means different content.

    `path` is what is read and what `size` and `mtime_ns` belong to; `source` is the user's own file, which
    messages name. The two differ for a compressed file.
    """

    path: str
    size: int
    mtime_ns: int
    source: str

    @classmethod
    def of(cls, path: Path, source: Path | None = None) -> FileIdentity:
        """Raises OSError where there is no such file."""
        status = path.stat()
        return cls(str(path), status.st_size, status.st_mtime_ns, str(source or path))


def resolve_files(path: DataPath | Sequence[DataPath], setting: str = "data.train_path") -> list[Path]:
    """The absolute paths of the files behind a file, a folder, a glob, or a list of those, in data order.

    A folder stands for its own `*.jsonl` files (`.jsonl.zst` and `.jsonl.gz` too) sorted by name, a glob for
    its matches sorted by path; a list keeps its order. The order matters: it numbers the lines. Raises UserError
    for what is missing, empty, unreadable, named twice, or there both plain and compressed.
    """
    entries = [path] if isinstance(path, str | os.PathLike) else list(path)
    if not entries:
        raise UserError(f"{setting}=[]: no data path; {_FIX}")
    files = [file for entry in entries for file in _resolve_entry(os.fspath(entry), setting)]
    seen: dict[Path, Path] = {}
    for file in files:
        content = plain_path(file)
        if content in seen:
            raise _given_twice(seen[content], file, setting)
        seen[content] = file
        _check_readable(file, setting)
    return files


def plain_path(file: Path) -> Path:
    """The path without the suffix of a compressed file: two files that share it hold the same lines."""
    return file.with_suffix("") if file.suffix in ARCHIVE_SUFFIXES else file


def _given_twice(first: Path, second: Path, setting: str) -> UserError:
    if first == second:
        return UserError(f"{setting}: {first} is named twice; every file may be given once")
    return UserError(
        f"{setting}: {first} and {second} hold the same lines, which would train twice; remove one, or name the"
        " files to use"
    )


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
        names = sorted(name for name in os.listdir(folder) if name.endswith(_LISTED_SUFFIXES))
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
