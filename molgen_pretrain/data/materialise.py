"""Token ids of planned units: from the text of their lines, or copied from the token cache.

Both write into `ids` [positions] of the smallest type that holds the vocabulary (`token_cache.id_type`), in native
byte order: the first `kept[i]` ids of line `lines[i]`, which has `counts[i]`, from `places[i]` on. All are [n].
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from molgen_pretrain.data.line_index import LineIndex
from molgen_pretrain.data.reader import LineReader, changed_file
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.data.units import parse_unit

Ints = NDArray[np.int64]

# What may become resident of a token cache. Reading one unit makes about a MiB of a larger one resident (measured
# 978 KiB), since the system maps what surrounds it too.
_RESIDENT_BYTES = 256 * 1024 * 1024
_RESIDENT_UNITS = 128
_PAGE_BYTES = 4096


class TextWriter:
    """Reads and tokenizes. Raises UserError if a line is no longer what it was planned as."""

    def __init__(self, index: LineIndex, tokenizer: UnitTokenizer, min_emb_len: int) -> None:
        self._index = index
        self._reader = LineReader(index)
        self._tokenizer = tokenizer
        self._min_emb_len = min_emb_len

    def write(self, ids: NDArray, lines: Ints, counts: Ints, places: Ints, kept: Ints) -> None:
        encoded, encoded_counts = self._encode([self._text(line) for line in lines.tolist()])
        changed = np.flatnonzero(encoded_counts != counts)
        if changed.size:
            unit = changed[0]
            what = f"the line had {counts[unit]} tokens and has {encoded_counts[unit]}"
            raise changed_file(self._index.locate(int(lines[unit])), what)
        _copy_units(encoded.astype(ids.dtype), np.cumsum(counts) - counts, ids, places, kept)

    def _encode(self, texts: list[str]) -> tuple[NDArray[np.uint32], Ints]:
        """In a new thread, whose memory comes from an arena of its own (glibc).

        In the main thread's, which Python has been filling with objects since the start, a worker's tokenizer
        takes half as long again. One thread per call, because threads do not survive the fork of a worker.
        """
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(self._tokenizer.encode_flat, texts).result()

    def _text(self, line: int) -> str:
        unit = parse_unit(self._reader.read(line), self._min_emb_len)
        if not isinstance(unit, str):
            raise changed_file(self._index.locate(line), f"the line is now bad: {unit.value}")
        return unit


class CacheWriter:
    """Copies from the line index's token cache, which holds the units as they were when it was opened.

    In two steps, so that one process can fetch what another copies.
    """

    def __init__(self, index: LineIndex) -> None:
        self._index = index

    def write(self, ids: NDArray, lines: Ints, counts: Ints, places: Ints, kept: Ints) -> None:
        self.copy(ids, self._index.token_starts(lines), places, kept)

    def fetch(self, lines: Ints, kept: Ints) -> Ints:
        """Where each line's tokens begin in the cache, [n]; the kept ones are in the system's memory afterwards."""
        starts = self._index.token_starts(lines)
        for part in self._parts(len(lines)):
            self._touch(starts[part], kept[part])
        return starts

    def copy(self, ids: NDArray, starts: Ints, places: Ints, kept: Ints) -> None:
        for part in self._parts(len(starts)):
            _copy_units(self._index.tokens, starts[part], ids, places[part], kept[part])

    def _touch(self, starts: Ints, kept: Ints) -> None:
        """Reading one token of each page waits for the disk, if it has to be."""
        tokens = self._index.tokens
        tokens_per_page = _PAGE_BYTES // tokens.itemsize
        first, last = starts // tokens_per_page, (starts + kept - 1) // tokens_per_page
        pages = last - first + 1
        within = np.arange(pages.sum()) - np.repeat(np.cumsum(pages) - pages, pages)
        tokens.take((np.repeat(first, pages) + within) * tokens_per_page)

    def _parts(self, units: int) -> Iterator[slice]:
        """All units at once, or, of a large cache, as many as may be resident, which are let go of after them."""
        if self._index.tokens.nbytes <= _RESIDENT_BYTES:
            yield slice(None)
            return
        for begin in range(0, units, _RESIDENT_UNITS):
            yield slice(begin, begin + _RESIDENT_UNITS)
            self._index.release_tokens()


def _copy_units(tokens: NDArray, starts: Ints, ids: NDArray, places: Ints, kept: Ints) -> None:
    """`kept[i]` items from `tokens[starts[i]:]` to `ids[places[i]:]`, both of one type."""
    # A slice of a memoryview costs half of one of numpy's, and at a few hundred tokens that is most of it.
    source, target = tokens.data, ids.data
    ends, place_ends = (starts + kept).tolist(), (places + kept).tolist()
    for place, place_end, start, end in zip(places.tolist(), place_ends, starts.tolist(), ends, strict=True):
        target[place:place_end] = source[start:end]
