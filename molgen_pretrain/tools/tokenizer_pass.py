"""All units of some files through a tokenizer, on all cores: which ids they use, or whether two tokenizers agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from molgen_pretrain.config.compose import compose_run
from molgen_pretrain.config.plain import cache_dir
from molgen_pretrain.data.chunk import UnitRules
from molgen_pretrain.data.decompress import plain_files
from molgen_pretrain.data.file_pass import FilePass
from molgen_pretrain.data.files import FileIdentity, resolve_files
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.errors import UserError

# Lines that a run leaves out as too short count here, so that a tokenizer fits whatever data.min_emb_len says.
_MIN_EMB_LEN = 0
_PIECES_SHOWN = 8


@dataclass(frozen=True)
class DataFiles:
    """Files of lines, compressed ones unpacked, and the processes to read them with (None: one per core)."""

    identities: Sequence[FileIdentity]
    processes: int | None

    @classmethod
    def find(cls, paths: Sequence[str], processes: int | None) -> DataFiles:
        """Raises UserError for paths that lead nowhere."""
        if processes is not None and processes < 1:
            raise UserError(f"--processes={processes}: must be at least 1; leave it out for one per core")
        cache = cache_dir(compose_run([]).data)
        return cls(plain_files(resolve_files(paths, "--data"), cache, f"paths.cache={cache}"), processes)

    def file_pass(self, tokenizer: UnitTokenizer, *, with_ids: bool) -> FilePass:
        return FilePass(
            self.identities, UnitRules(tokenizer, _MIN_EMB_LEN), with_ids=with_ids, processes=self.processes
        )


@dataclass(frozen=True)
class Usage:
    """What the units of some files are made of. `count_of_id` [tokenizer's size] counts each id, separators left out;
    `bad_lines` the lines without a unit, by reason."""

    files: int
    count_of_id: NDArray[np.int64]
    units_of_length: Counter[int]
    bad_lines: Counter[str]

    @property
    def ids(self) -> list[int]:
        """The ids in use, ascending."""
        return np.flatnonzero(self.count_of_id).tolist()


def measure_usage(files: DataFiles, tokenizer: UnitTokenizer) -> Usage:
    """One pass. Raises UserError where no line gives a unit."""
    usage = Usage(len(files.identities), np.zeros(tokenizer.size, dtype=np.int64), Counter(), Counter())
    with closing(files.file_pass(tokenizer, with_ids=True).results("counting ids")) as results:
        for _, chunk in results:
            assert chunk.ids is not None
            counts = np.bincount(chunk.ids)
            usage.count_of_id[: len(counts)] += counts
            usage.units_of_length.update(chunk.counts[chunk.counts > 0].tolist())
            usage.bad_lines.update(chunk.bad_lines)
    if not usage.units_of_length:
        raise UserError(
            f"--data: no usable line in {usage.files} files; see python -m molgen_pretrain.tools.data stats"
        )
    return usage


def prove_same(files: DataFiles, base: Tokenizer, compact: UnitTokenizer, kept_ids: Sequence[int]) -> tuple[int, int]:
    """Encodes every unit with both tokenizers; (units, tokens). Raises UserError at the first that comes out otherwise.

    kept_ids: the base's id of each of the compact tokenizer's.
    """
    both = _BothTokenizers(base, compact, kept_ids)
    units = tokens = 0
    with closing(files.file_pass(both, with_ids=False).results("comparing")) as results:
        for _, chunk in results:
            units += int(np.count_nonzero(chunk.counts))
            tokens += int(chunk.counts.sum())
    return units, tokens


class _BothTokenizers(UnitTokenizer):
    """The base, which holds the compact one against itself wherever it counts tokens: in each process of a pass."""

    def __init__(self, base: Tokenizer, compact: UnitTokenizer, kept_ids: Sequence[int]) -> None:
        super().__init__(base, compact.pad_token, compact.fingerprint)
        self._compact = compact
        self._kept_ids = np.array(kept_ids, dtype=np.uint32)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        ids, counts = self.encode_flat(texts)
        other_ids, other_counts = self._compact.encode_flat(texts)
        if not (np.array_equal(counts, other_counts) and np.array_equal(ids, self._kept_ids[other_ids])):
            raise UserError(next(filter(None, map(self._difference, texts))))
        return counts.tolist()

    def _difference(self, text: str) -> str | None:
        ids = self.encode_batch([text])[0]
        others = self._kept_ids[self._compact.encode_batch([text])[0]].tolist()
        if ids == others:
            return None
        place = next((at for at, pair in enumerate(zip(ids, others, strict=False)) if pair[0] != pair[1]), len(ids))
        shown = [[self.decode([token]) for token in part[place:][:_PIECES_SHOWN]] for part in (ids, others)]
        return (
            f"the compact tokenizer is not the base's equal: from token {place} on the base has {shown[0]}, the"
            f" compact one {shown[1]}, in the unit {text}"
        )
