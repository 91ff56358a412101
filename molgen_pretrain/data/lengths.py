"""The one-time pass: read every line once, count its tokens, write the arrays of the line index.

The result lives in `<cache_dir>/data/<key>/`. The key covers all that decides it: the files' paths, sizes and
times, the tokenizer and its library's version, the unit format and `min_emb_len`. Memory does not grow with
the number of lines: counts are appended to files as they come.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np
import tokenizers

from molgen_pretrain.data.cache import build_once
from molgen_pretrain.data.files import FileIdentity
from molgen_pretrain.data.line_index import (
    LENGTH_TYPE,
    LENGTHS_FILE,
    OFFSET_TYPE,
    OFFSETS_FILE,
    BadLineExample,
    IndexMeta,
    LineIndex,
    is_complete,
)
from molgen_pretrain.data.reader import changed_file
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.data.units import MAX_LINE_BYTES, UNIT_FORMAT_VERSION, BadLine, parse_unit
from molgen_pretrain.errors import UserError

logger = logging.getLogger(__name__)

_CACHE_VERSION = 1
_BAD_LINES_SHOWN = 10
_PROGRESS_SECONDS = 5.0
# Enough text to occupy every core of `encode_batch`, little enough that the encodings stay below 100 MiB.
_BATCH_BYTES = 1024 * 1024
_BATCH_LINES = 4096


def open_line_index(
    files: Sequence[Path],
    tokenizer: UnitTokenizer,
    cache_dir: Path,
    *,
    min_emb_len: int,
    stop_at_bad_line: bool = False,
) -> LineIndex:
    """The line index of `files`, from the cache or by a pass over them now.

    With `stop_at_bad_line` the pass ends at the first bad line with a UserError that names it. Raises
    UserError too where the cache cannot be written or a file changes during the pass.
    """
    identities = [FileIdentity.of(file) for file in files]
    folder = cache_dir / "data" / _cache_key(identities, tokenizer, min_emb_len)

    def build(aside: Path) -> None:
        _IndexPass(identities, tokenizer, min_emb_len, stop_at_bad_line).run(aside)

    build_once(folder, build, is_complete, setting=f"paths.cache={cache_dir}")
    index = LineIndex(folder)
    if stop_at_bad_line and index.meta.first_bad_lines:
        first = index.meta.first_bad_lines[0]
        raise _bad_line_error(index.meta.files[first.file].path, first.line, BadLine(first.reason))
    return index


def _cache_key(identities: Sequence[FileIdentity], tokenizer: UnitTokenizer, min_emb_len: int) -> str:
    parts = {
        "cache_version": _CACHE_VERSION,
        "unit_format": UNIT_FORMAT_VERSION,
        "tokenizer": tokenizer.fingerprint,
        "tokenizers": tokenizers.__version__,
        "min_emb_len": min_emb_len,
        "files": [asdict(identity) for identity in identities],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _bad_line_error(path: str, line: int, reason: BadLine) -> UserError:
    return UserError(
        f"data.on_bad_line=error: {path}:{line}: {reason.value} ({reason.rule}); mend or remove the line, or"
        " set data.on_bad_line=skip"
    )


class _IndexPass:
    """The state of one pass: the totals so far."""

    def __init__(
        self,
        identities: Sequence[FileIdentity],
        tokenizer: UnitTokenizer,
        min_emb_len: int,
        stop_at_bad_line: bool,
    ) -> None:
        self._identities = identities
        self._tokenizer = tokenizer
        self._min_emb_len = min_emb_len
        self._stop_at_bad_line = stop_at_bad_line
        self._bad_lines: Counter[str] = Counter()
        self._first_bad_lines: list[BadLineExample] = []
        self._units_of_length: Counter[int] = Counter()
        self._lines_per_file: list[int] = []

    def run(self, folder: Path) -> None:
        """Writes the arrays and the totals into `folder`."""
        progress = _Progress(sum(identity.size for identity in self._identities), len(self._identities))
        with ExitStack() as stack:
            offsets_file = stack.enter_context((folder / OFFSETS_FILE).open("wb"))
            lengths_file = stack.enter_context((folder / LENGTHS_FILE).open("wb"))
            for number, identity in enumerate(self._identities):
                lines_done = 0
                for offsets, lines in _read_batches(identity):
                    counts = self._count_tokens(lines, number, lines_done)
                    offsets_file.write(np.array(offsets, dtype=OFFSET_TYPE).tobytes())
                    lengths_file.write(counts.astype(LENGTH_TYPE).tobytes())
                    lines_done += len(lines)
                    progress.add(len(lines), sum(map(len, lines)), int(counts.sum()))
                self._lines_per_file.append(lines_done)
        progress.finish()
        self._meta().save(folder)

    def _meta(self) -> IndexMeta:
        return IndexMeta(
            files=tuple(self._identities),
            lines_per_file=tuple(self._lines_per_file),
            bad_lines=dict(self._bad_lines),
            first_bad_lines=tuple(self._first_bad_lines),
            units_of_length=dict(self._units_of_length),
        )

    def _count_tokens(self, lines: list[bytes], file: int, first_line: int) -> np.ndarray:
        counts = np.zeros(len(lines), dtype=np.int64)
        texts, rows = [], []
        for row, line in enumerate(lines):
            unit = parse_unit(line, self._min_emb_len)
            if isinstance(unit, str):
                texts.append(unit)
                rows.append(row)
            else:
                self._note_bad_line(file, first_line + row + 1, unit)
        if rows:
            counts[rows] = self._tokenizer.count_tokens(texts)
            lengths, units = np.unique(counts[rows], return_counts=True)
            self._units_of_length.update(dict(zip(lengths.tolist(), units.tolist(), strict=True)))
        return counts

    def _note_bad_line(self, file: int, line: int, reason: BadLine) -> None:
        if self._stop_at_bad_line:
            raise _bad_line_error(self._identities[file].path, line, reason)
        self._bad_lines[reason.value] += 1
        if len(self._first_bad_lines) < _BAD_LINES_SHOWN:
            self._first_bad_lines.append(BadLineExample(file, line, reason.value))


def _read_batches(identity: FileIdentity) -> Iterator[tuple[list[int], list[bytes]]]:
    """Batches of (offsets, lines) of one file. UserError if it cannot be read or has changed."""
    try:
        lines = _read_lines(identity.path)
        while batch := _next_batch(lines):
            yield [offset for offset, _ in batch], [line for _, line in batch]
        unchanged = FileIdentity.of(Path(identity.path)) == identity
    except OSError as error:
        raise UserError(f"cannot read {identity.path}: {error.strerror}") from error
    if not unchanged:
        raise changed_file(identity.path, "its size or time is another than at the start of the pass")


def _next_batch(lines: Iterator[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    batch, size = [], 0
    for offset, line in islice(lines, _BATCH_LINES):
        batch.append((offset, line))
        size += len(line)
        if size >= _BATCH_BYTES:
            break
    return batch


def _read_lines(path: str) -> Iterator[tuple[int, bytes]]:
    """(offset, line) pairs. Of a line over the limit only as much is returned as shows that it is."""
    offset = 0
    with open(path, "rb", buffering=_BATCH_BYTES) as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            start = offset
            offset += len(line)
            part = line
            while len(part) > MAX_LINE_BYTES and not part.endswith(b"\n"):
                part = file.readline(MAX_LINE_BYTES + 1)
                offset += len(part)
            yield start, line


class _Progress:
    """Log lines for people who wait: how far, how fast, how long still."""

    def __init__(self, total_bytes: int, files: int) -> None:
        self._total_bytes = total_bytes
        self._bytes = self._lines = self._tokens = 0
        self._start = self._last = time.monotonic()
        logger.info("one-time pass over %d data file%s, %.1f MB", files, "s" * (files > 1), total_bytes / 1e6)

    def add(self, lines: int, size: int, tokens: int) -> None:
        self._lines += lines
        self._bytes += size
        self._tokens += tokens
        now = time.monotonic()
        if now - self._last < _PROGRESS_SECONDS:
            return
        self._last = now
        elapsed = now - self._start
        logger.info(
            "one-time pass: %.0f %%, %s lines, %s lines/s, %.2f M tokens/s, about %.0f s left",
            100 * self._bytes / self._total_bytes,
            f"{self._lines:,}",
            f"{self._lines / elapsed:,.0f}",
            self._tokens / elapsed / 1e6,
            elapsed * (self._total_bytes / self._bytes - 1),
        )

    def finish(self) -> None:
        logger.info(
            "one-time pass: %s lines, %.1f M tokens in %.1f s",
            f"{self._lines:,}",
            self._tokens / 1e6,
            time.monotonic() - self._start,
        )
