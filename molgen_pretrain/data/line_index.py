"""What the one-time pass leaves behind: where each line starts and how many tokens its unit has.

Lines are numbered from 0 through all files in data order; that number is a unit's id. Two memory-mapped
arrays hold a line's offset in its file and its token count (0: a bad line); everything small is in JSON.
Opening takes milliseconds and memory that does not grow with the number of lines.
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
    """The opened result of a pass. Pickles as its folder, so a worker maps the arrays itself."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.meta = IndexMeta.load(folder)
        self.lines = self.meta.lines
        self._first_lines = [0, *accumulate(self.meta.lines_per_file)]
        self._offsets = _map(folder / OFFSETS_FILE, OFFSET_TYPE, self.lines)
        self._lengths = _map(folder / LENGTHS_FILE, LENGTH_TYPE, self.lines)

    def __reduce__(self) -> tuple[type[LineIndex], tuple[Path]]:
        return LineIndex, (self._folder,)

    def token_counts(self, lines: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of each line's unit, without separator; 0 for a bad line. Shape as `lines`."""
        return self._lengths[lines].astype(np.int64)

    def place(self, line: int) -> tuple[int, int]:
        """(number of the file, 0-based line in it)."""
        if not 0 <= line < self.lines:
            raise IndexError(f"line {line} is not in 0 .. {self.lines - 1}")
        file = bisect_right(self._first_lines, line) - 1
        return file, line - self._first_lines[file]

    def byte_range(self, line: int) -> tuple[int, int, int]:
        """(number of the file, first byte, byte after the last one), newline included."""
        file, _ = self.place(line)
        is_last = line + 1 == self._first_lines[file + 1]
        end = self.meta.files[file].size if is_last else int(self._offsets[line + 1])
        return file, int(self._offsets[line]), end

    def locate(self, line: int) -> str:
        """`file:line`, 1-based, as editors and compilers write it."""
        file, number = self.place(line)
        return f"{self.meta.files[file].path}:{number + 1}"


def _map(file: Path, dtype: np.dtype, count: int) -> NDArray:
    # An empty file cannot be mapped.
    return np.memmap(file, dtype=dtype, mode="r", shape=(count,)) if count else np.empty(0, dtype=dtype)
