"""What the one-time pass leaves behind: where each line starts and how many tokens its unit has.

Lines are numbered from 0 through all files in data order; that number is a unit's id. Two memory-mapped
arrays hold a line's offset in its file and its token count (0: a bad line); everything small is in JSON; the
token ids themselves, where they are kept, lie in a folder of their own beside (`token_cache`). Opening takes
milliseconds, and neither that nor a lookup takes memory that grows with the number of lines.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from molgen_pretrain.data.files import FileIdentity
from molgen_pretrain.data.mapped import MappedArray
from molgen_pretrain.data.token_cache import TOKENS_FOLDER, TokenCache

OFFSETS_FILE = "offsets.u64"
LENGTHS_FILE = "lengths.i32"
META_FILE = "meta.json"

OFFSET_TYPE = np.dtype("<u8")
LENGTH_TYPE = np.dtype("<i4")


@dataclass(frozen=True, slots=True)
class BadLineExample:
    """One bad line: the number of its file, its 1-based number there, the reason's name."""

    file: int
    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class IndexMeta:
    """The totals of a pass. `units_of_length` counts units by token count (bad lines excluded)."""

    files: tuple[FileIdentity, ...]
    lines_per_file: tuple[int, ...]
    bad_lines: dict[str, int]
    first_bad_lines: tuple[BadLineExample, ...]
    units_of_length: dict[int, int]

    @property
    def lines(self) -> int:
        return sum(self.lines_per_file)

    @property
    def tokens(self) -> int:
        """Tokens of all units, separators not counted."""
        return sum(length * units for length, units in self.units_of_length.items())

    def save(self, folder: Path) -> None:
        (folder / META_FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> IndexMeta:
        """Raises OSError, ValueError, KeyError or TypeError for what is not a whole meta file."""
        fields = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
        return cls(
            files=tuple(FileIdentity(**file) for file in fields["files"]),
            lines_per_file=tuple(fields["lines_per_file"]),
            bad_lines=dict(fields["bad_lines"]),
            first_bad_lines=tuple(BadLineExample(**example) for example in fields["first_bad_lines"]),
            units_of_length={int(length): count for length, count in fields["units_of_length"].items()},
        )


def is_complete(folder: Path) -> bool:
    """Whether a pass's result stands here, with arrays as long as its totals say."""
    try:
        lines = IndexMeta.load(folder).lines
        offsets, lengths = (folder / OFFSETS_FILE).stat(), (folder / LENGTHS_FILE).stat()
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return offsets.st_size == lines * OFFSET_TYPE.itemsize and lengths.st_size == lines * LENGTH_TYPE.itemsize


class LineIndex:
    """The opened result of a pass. Pickles as its folder, so a worker maps the arrays itself.

    `use_tokens`: whether the token ids are to be used where the folder has them.
    """

    def __init__(self, folder: Path, use_tokens: bool = False) -> None:
        self.folder = folder
        self.meta = IndexMeta.load(folder)
        self.lines = self.meta.lines
        self._first_lines = [0, *accumulate(self.meta.lines_per_file)]
        self._offsets = MappedArray(folder / OFFSETS_FILE, OFFSET_TYPE, self.lines)
        self._lengths = MappedArray(folder / LENGTHS_FILE, LENGTH_TYPE, self.lines)
        self._tokens = TokenCache.find(folder / TOKENS_FOLDER, self.lines, self.meta.tokens) if use_tokens else None

    def __reduce__(self) -> tuple[type[LineIndex], tuple[Path, bool]]:
        return LineIndex, (self.folder, self.has_tokens)

    @property
    def has_tokens(self) -> bool:
        return self._tokens is not None

    @property
    def tokens(self) -> NDArray:
        """The ids of all units, line after line (uint8, uint16 or uint32 [tokens]); only with `has_tokens`."""
        return self._token_cache().ids.array

    def token_starts(self, lines: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the ids of each line begin in `tokens`: its `token_counts` are its own. Shape as `lines`, [n]."""
        return self._token_cache().starts.take(lines).astype(np.int64)

    def release_tokens(self) -> None:
        """Lets go of the part of `tokens` that reading has made resident, which otherwise grows to all of it."""
        self._token_cache().ids.release()

    def token_counts(self, lines: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of each line's unit, without separator; 0 for a bad line. Shape as `lines`, [n]."""
        return self._lengths.take(lines).astype(np.int64)

    def place(self, line: int) -> tuple[int, int]:
        """(number of the file, 0-based line in it)."""
        if not 0 <= line < self.lines:
            raise IndexError(f"line {line} is not in 0 .. {self.lines - 1}")
        file = bisect_right(self._first_lines, line) - 1
        return file, line - self._first_lines[file]

    def byte_range(self, line: int) -> tuple[int, int, int]:
        """(number of the file, first byte, byte after the last one), newline included."""
        file, _ = self.place(line)
        if line + 1 == self._first_lines[file + 1]:
            return file, int(self._offsets.take(np.array([line]))[0]), self.meta.files[file].size
        start, end = self._offsets.take(np.array([line, line + 1])).tolist()
        return file, start, end

    def locate(self, line: int) -> str:
        """`file:line`, 1-based, as editors and compilers write it; of a compressed file its own name."""
        file, number = self.place(line)
        return f"{self.meta.files[file].source}:{number + 1}"

    def _token_cache(self) -> TokenCache:
        if self._tokens is None:
            raise ValueError("the token ids of this index are not in use")
        return self._tokens
