"""What the one-time pass writes: the line index, and the token ids with it or later.

Memory does not grow with the number of lines: arrays are appended to files as their chunks come.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from molgen_pretrain.data.array_file import ArrayFile
from molgen_pretrain.data.chunk import BAD_LINES_SHOWN, ChunkCounts
from molgen_pretrain.data.file_pass import FilePass
from molgen_pretrain.data.files import FileIdentity
from molgen_pretrain.data.line_index import (
    LENGTH_TYPE,
    LENGTHS_FILE,
    OFFSET_TYPE,
    OFFSETS_FILE,
    BadLineExample,
    IndexMeta,
    LineIndex,
)
from molgen_pretrain.data.reader import changed_file
from molgen_pretrain.data.token_cache import NoRoomError, TokenWriter, is_full_disk
from molgen_pretrain.data.units import BadLine
from molgen_pretrain.errors import UserError

logger = logging.getLogger(__name__)


def bad_line_error(path: str, line: int, reason: BadLine) -> UserError:
    return UserError(
        f"data.on_bad_line=error: {path}:{line}: {reason.value} ({reason.rule}); mend or remove the line, or"
        " set data.on_bad_line=skip"
    )


class IndexPass:
    """Fills a new folder with a line index; the state is the totals so far.

    `tokens` gets the token ids (None: they are not kept). Where they do not fit, the pass goes on without them,
    or with `tokens_required` ends with the NoRoomError. With `stop_at_bad_line` it ends at the first bad line.
    """

    def __init__(
        self,
        folder: Path,
        identities: Sequence[FileIdentity],
        tokens: TokenWriter | None,
        *,
        tokens_required: bool,
        stop_at_bad_line: bool,
    ) -> None:
        self._folder = folder
        self._identities = identities
        self._tokens = tokens
        self._tokens_required = tokens_required
        self._stop_at_bad_line = stop_at_bad_line
        self._offsets = ArrayFile(folder / OFFSETS_FILE, OFFSET_TYPE)
        self._lengths = ArrayFile(folder / LENGTHS_FILE, LENGTH_TYPE)
        self._bad_lines: Counter[str] = Counter()
        self._first_bad_lines: list[BadLineExample] = []
        self._units_of_length: Counter[int] = Counter()
        self._lines_per_file = [0] * len(identities)

    def run(self, file_pass: FilePass) -> None:
        try:
            with contextlib.closing(file_pass.results("one-time pass")) as results:
                for file, chunk in results:
                    self._add(file, chunk)
                    file_pass.with_ids = self._tokens is not None
            self._finish()
        finally:
            # Not left to the garbage collector: a removed file takes its room for as long as it is open.
            self._offsets.close()
            self._lengths.close()
            if self._tokens is not None:
                self._tokens.close()

    def _finish(self) -> None:
        self._offsets.finish()
        self._lengths.finish()
        if self._tokens is not None:
            try:
                self._tokens.finish()
            except NoRoomError as error:
                self._give_up_tokens(error)
        self._meta().save(self._folder)

    def _add(self, file: int, chunk: ChunkCounts) -> None:
        self._note_bad_lines(file, chunk)
        lengths, units = np.unique(chunk.counts, return_counts=True)
        self._units_of_length.update(dict(zip(lengths.tolist(), units.tolist(), strict=True)))
        self._lines_per_file[file] += len(chunk.counts)
        if self._tokens is not None and chunk.ids is not None:
            try:
                self._tokens.append(chunk.counts, chunk.ids)
            except NoRoomError as error:
                self._give_up_tokens(error)
        self._append(self._offsets, chunk.offsets)
        self._append(self._lengths, chunk.counts)

    def _append(self, array: ArrayFile, numbers: NDArray) -> None:
        try:
            array.append(numbers)
        except OSError as error:
            if self._tokens is None or not is_full_disk(error):
                raise
            self._give_up_tokens(NoRoomError(f"the disk is full ({error.strerror})"))
            array.append(numbers)

    def _give_up_tokens(self, error: NoRoomError) -> None:
        if self._tokens_required or self._tokens is None:
            raise error
        self._tokens.discard()
        self._tokens = None
        logger.info("one-time pass: goes on without keeping token ids: %s", error)

    def _note_bad_lines(self, file: int, chunk: ChunkCounts) -> None:
        lines_before = self._lines_per_file[file]
        for row, reason in chunk.first_bad_lines:
            line = lines_before + row + 1
            if self._stop_at_bad_line:
                raise bad_line_error(self._identities[file].source, line, reason)
            if len(self._first_bad_lines) < BAD_LINES_SHOWN:
                self._first_bad_lines.append(BadLineExample(file, line, reason.value))
        self._bad_lines.update(chunk.bad_lines)

    def _meta(self) -> IndexMeta:
        # Bad lines count 0 tokens; what remains of the zeros are units without tokens.
        self._units_of_length[0] -= self._bad_lines.total()
        return IndexMeta(
            files=tuple(self._identities),
            lines_per_file=tuple(self._lines_per_file),
            bad_lines=dict(sorted(self._bad_lines.items())),
            first_bad_lines=tuple(self._first_bad_lines),
            units_of_length=dict(sorted((+self._units_of_length).items())),
        )


def write_tokens(index: LineIndex, file_pass: FilePass, tokens: TokenWriter) -> None:
    """The token ids of an index that was made without them.

    Raises NoRoomError, and UserError where a line has not the count that the index gives it.
    """
    line = 0
    with contextlib.closing(tokens), contextlib.closing(file_pass.results("pass for token ids")) as results:
        for _, chunk in results:
            lines = np.arange(line, min(line + len(chunk.counts), index.lines))
            line += len(chunk.counts)
            if not np.array_equal(index.token_counts(lines), chunk.counts):
                raise changed_file(index.locate(int(lines[0])), "here or further on, lines have other token counts")
            assert chunk.ids is not None
            tokens.append(chunk.counts, chunk.ids)
        tokens.finish()
