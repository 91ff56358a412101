"""The one-time pass over one piece of one file: what its processes share out, and what each gives back.

A chunk owns the lines that start in it, so chunks of any size partition a file's lines.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from molgen_pretrain.data.reader import changed_file
from molgen_pretrain.data.token_cache import id_type
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.data.units import MAX_LINE_BYTES, BadLine, parse_unit
from molgen_pretrain.errors import UserError

BAD_LINES_SHOWN = 10

# Text of one `encode_batch`: the encodings take some hundred bytes per token while they live.
_BATCH_CHARACTERS = 256 * 1024
_READ_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class UnitRules:
    """What turns a line into token ids."""

    tokenizer: UnitTokenizer
    min_emb_len: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes `start` to `end` of a file (number `file` of the pass, `file_size` bytes long).

    `source` is the name that messages give it, `with_ids` whether the token ids themselves are wanted.
    """

    file: int
    path: str
    source: str
    file_size: int
    start: int
    end: int
    with_ids: bool


@dataclass(slots=True)
class ChunkCounts:
    """The lines of a chunk in order: `offsets` in the file and `counts` of tokens (0: a bad line), both [n].

    `ids` are the tokens of all lines, one after another, if they were wanted. `first_bad_lines` are (row,
    reason) of the first few.
    """

    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    ids: NDArray | None
    bad_lines: dict[str, int]
    first_bad_lines: list[tuple[int, BadLine]]


def count_chunk(chunk: Chunk, rules: UnitRules) -> ChunkCounts:
    """Reads and tokenizes a chunk. Raises UserError if the file cannot be read or became shorter."""
    try:
        first_offset, lines = _read_lines(chunk)
    except OSError as error:
        raise UserError(f"cannot read {chunk.source}: {error.strerror}") from error
    units = [parse_unit(line, rules.min_emb_len) for line in lines]
    rows = [row for row, unit in enumerate(units) if isinstance(unit, str)]
    bad = [(row, unit) for row, unit in enumerate(units) if isinstance(unit, BadLine)]
    counts = np.zeros(len(lines), dtype=np.int64)
    counts[rows], ids = _encode([unit for unit in units if isinstance(unit, str)], rules.tokenizer, chunk.with_ids)
    ends = first_offset + np.cumsum([len(line) for line in lines], dtype=np.int64)
    return ChunkCounts(
        offsets=np.concatenate([[first_offset], ends[:-1]])[: len(lines)],
        counts=counts,
        ids=ids,
        bad_lines=dict(Counter(reason.value for _, reason in bad)),
        first_bad_lines=bad[:BAD_LINES_SHOWN],
    )


def _encode(texts: list[str], tokenizer: UnitTokenizer, with_ids: bool) -> tuple[NDArray[np.int64], NDArray | None]:
    counts, ids = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=id_type(tokenizer.size))]
    for batch in _batches(texts):
        if with_ids:
            flat, lengths = tokenizer.encode_flat(batch)
            ids.append(flat.astype(ids[0].dtype))
        else:
            lengths = np.array(tokenizer.count_tokens(batch), dtype=np.int64)
        counts.append(lengths)
    return np.concatenate(counts), np.concatenate(ids) if with_ids else None


def _batches(texts: list[str]) -> Iterator[list[str]]:
    start = characters = 0
    for end, text in enumerate(texts, 1):
        characters += len(text)
        if characters >= _BATCH_CHARACTERS or end == len(texts):
            yield texts[start:end]
            start, characters = end, 0


def _read_lines(chunk: Chunk) -> tuple[int, list[bytes]]:
    """(offset of the first line, the lines with their newlines)."""
    # The byte before the chunk tells whether a line starts at its first byte.
    start = max(chunk.start - 1, 0)
    with open(chunk.path, "rb", buffering=0) as file:
        content = _read(file.fileno(), chunk, start, chunk.end)
        if chunk.start:
            first = content.find(b"\n") + 1 or len(content)
            start += first
            content = content[first:]
        if content and not content.endswith(b"\n"):
            content += _rest_of_line(file.fileno(), chunk)
    return start, io.BytesIO(content).readlines()


def _rest_of_line(descriptor: int, chunk: Chunk) -> bytes:
    """What the last line has beyond the chunk; of a line over the limit only as much as shows that it is."""
    rest = bytearray()
    for start in range(chunk.end, chunk.file_size, _READ_BYTES):
        piece = _read(descriptor, chunk, start, min(start + _READ_BYTES, chunk.file_size))
        end = piece.find(b"\n") + 1
        if len(rest) <= MAX_LINE_BYTES:
            rest += piece[: end or len(piece)]
        if end:
            break
    return bytes(rest)


def _read(descriptor: int, chunk: Chunk, start: int, end: int) -> bytes:
    content = os.pread(descriptor, end - start, start)
    if len(content) < end - start:
        raise changed_file(chunk.source, f"it had {chunk.file_size:,} bytes and is shorter now")
    return content
