"""Token ids of all units in one file: training copies them instead of tokenizing each epoch anew.

`ids.bin` holds the ids line after line without separators, in the smallest unsigned type that holds the
vocabulary; `starts.u64` where each line's ids begin; `tokens.json` the type. They stand in a folder of their
own in the line index's, so that they can come later, in one rename.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from molgen_pretrain.data.array_file import ArrayFile
from molgen_pretrain.data.mapped import MappedArray

TOKENS_FOLDER = "tokens"

_IDS_FILE = "ids.bin"
_STARTS_FILE = "starts.u64"
_META_FILE = "tokens.json"

_STARTS_TYPE = np.dtype("<u8")


class NoRoomError(Exception):
    """The token ids do not fit; the message says into what."""


@dataclass(frozen=True, slots=True)
class TokenMeta:
    """`dtype` in numpy's spelling, byte order included."""

    dtype: str
    lines: int
    tokens: int


def id_type(vocabulary_size: int) -> np.dtype:
    """The smallest unsigned type that holds every id below `vocabulary_size`, little endian."""
    return np.min_scalar_type(vocabulary_size - 1).newbyteorder("<")


def needed_bytes(lines: int, tokens: int, vocabulary_size: int) -> int:
    """Disk space of the token ids of so many lines."""
    return tokens * id_type(vocabulary_size).itemsize + lines * _STARTS_TYPE.itemsize


class TokenCache:
    """The opened ids and starts."""

    def __init__(self, folder: Path) -> None:
        meta = TokenMeta(**json.loads((folder / _META_FILE).read_text(encoding="utf-8")))
        self.ids = MappedArray(folder / _IDS_FILE, np.dtype(meta.dtype), meta.tokens)
        self.starts = MappedArray(folder / _STARTS_FILE, _STARTS_TYPE, meta.lines)

    @classmethod
    def find(cls, folder: Path, lines: int, tokens: int) -> TokenCache | None:
        """The cache of so many lines and tokens; None where it does not stand whole."""
        return cls(folder) if is_token_cache(folder, lines, tokens) else None


def is_token_cache(folder: Path, lines: int, tokens: int) -> bool:
    """Whether the ids of so many lines and tokens stand here, in files as long as that needs."""
    try:
        meta = TokenMeta(**json.loads((folder / _META_FILE).read_text(encoding="utf-8")))
        ids, starts = (folder / _IDS_FILE).stat(), (folder / _STARTS_FILE).stat()
        itemsize = np.dtype(meta.dtype).itemsize
    except (OSError, ValueError, TypeError):
        return False
    sizes = (ids.st_size, starts.st_size)
    return (meta.lines, meta.tokens) == (lines, tokens) and sizes == (
        tokens * itemsize,
        lines * _STARTS_TYPE.itemsize,
    )


class TokenWriter:
    """Appends the ids of line after line to files in `folder`.

    Raises NoRoomError where they would exceed `limit_bytes` or the disk is full; `discard` then makes room.
    """

    def __init__(self, folder: Path, vocabulary_size: int, limit_bytes: int | None) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._ids = ArrayFile(folder / _IDS_FILE, id_type(vocabulary_size))
        self._starts = ArrayFile(folder / _STARTS_FILE, _STARTS_TYPE)
        self._vocabulary_size = vocabulary_size
        self._lines = self._tokens = 0

    def append(self, counts: NDArray[np.int64], ids: NDArray) -> None:
        """`counts` [n] of ids per line (0: a bad one), `ids` [sum of counts]."""
        ends = self._tokens + np.cumsum(counts)
        self._lines += len(counts)
        self._tokens += len(ids)
        needed = needed_bytes(self._lines, self._tokens, self._vocabulary_size)
        if self._limit_bytes is not None and needed > self._limit_bytes:
            raise NoRoomError(f"they take more than the {self._limit_bytes / 1e6:,.1f} MB allowed")
        with _full_disk_as_no_room():
            self._starts.append(ends - counts)
            self._ids.append(ids)

    def finish(self) -> None:
        with _full_disk_as_no_room():
            self._ids.finish()
            self._starts.finish()
            meta = TokenMeta(self._ids.dtype.str, self._lines, self._tokens)
            (self._folder / _META_FILE).write_text(json.dumps(asdict(meta)), encoding="utf-8")

    def discard(self) -> None:
        """Removes the folder."""
        self.close()
        shutil.rmtree(self._folder)

    def close(self) -> None:
        self._ids.close()
        self._starts.close()


@contextmanager
def _full_disk_as_no_room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_full_disk(error):
            raise
        raise NoRoomError(f"the disk is full ({error.strerror})") from error


def is_full_disk(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
