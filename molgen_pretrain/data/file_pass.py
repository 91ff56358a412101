"""Every line of some files once, in data order, on every core."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from molgen_pretrain.data.chunk import Chunk, ChunkCounts, UnitRules
from molgen_pretrain.data.files import FileIdentity
from molgen_pretrain.data.pass_pool import count_chunks
from molgen_pretrain.data.progress import Progress
from molgen_pretrain.data.reader import changed_file
from molgen_pretrain.errors import UserError

logger = logging.getLogger(__name__)

# Chunks: large enough that handing one over costs nothing, small enough that all processes end together.
_MOST_CHUNK_BYTES = 2 * 1024 * 1024
_LEAST_CHUNK_BYTES = 128 * 1024
_CHUNKS_PER_PROCESS = 16
# A new process needs as long to load a large tokenizer as to count half of this.
_LEAST_BYTES_PER_PROCESS = 2 * 1024 * 1024


class FilePass:
    """A pass over the files that `identities` say; `with_ids` may be switched off on the way.

    processes: None for one per usable core, fewer where the files are small. What comes out does not depend on
    it, nor on `chunk_bytes`.
    """

    def __init__(
        self,
        identities: Sequence[FileIdentity],
        rules: UnitRules,
        *,
        with_ids: bool,
        processes: int | None = None,
        chunk_bytes: int | None = None,
    ) -> None:
        self._identities = identities
        self._rules = rules
        self.with_ids = with_ids
        self._total_bytes = sum(identity.size for identity in identities)
        if processes is None:
            processes = max(1, min(usable_cores(), self._total_bytes // _LEAST_BYTES_PER_PROCESS))
        share = self._total_bytes // (processes * _CHUNKS_PER_PROCESS)
        self._chunk_bytes = chunk_bytes or min(max(share, _LEAST_CHUNK_BYTES), _MOST_CHUNK_BYTES)
        self._processes = min(processes, max(1, -(-self._total_bytes // self._chunk_bytes)))

    def results(self, task: str) -> Generator[tuple[int, ChunkCounts], None, None]:
        """(number of the file, counts of its next chunk), in data order; `task` is what progress is called.

        Close the generator where it is not used up. Raises UserError where a file cannot be read or is no
        longer as its identity says.
        """
        progress = Progress(task, self._total_bytes)
        logger.info(
            "%s over %d data file%s, %.1f MB, in %d process%s",
            task,
            len(self._identities),
            "s" * (len(self._identities) != 1),
            self._total_bytes / 1e6,
            self._processes,
            "es" * (self._processes != 1),
        )
        with contextlib.closing(count_chunks(self._chunks(), self._rules, self._processes)) as counts_in_order:
            for chunk, counts in zip(self._chunks(), counts_in_order, strict=True):
                yield chunk.file, counts
                progress.add(chunk.end - chunk.start, len(counts.counts), int(counts.counts.sum()))
        for identity in self._identities:
            _check_unchanged(identity)
        progress.finish()

    def _chunks(self) -> Iterator[Chunk]:
        for number, identity in enumerate(self._identities):
            for start in range(0, identity.size, self._chunk_bytes):
                end = min(start + self._chunk_bytes, identity.size)
                yield Chunk(number, identity.path, identity.source, identity.size, start, end, self.with_ids)


def usable_cores() -> int:
    """Cores that this process may use: a scheduler's share, where it binds jobs to theirs."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_unchanged(identity: FileIdentity) -> None:
    try:
        now = FileIdentity.of(Path(identity.path), Path(identity.source))
    except OSError as error:
        raise UserError(f"cannot read {identity.source}: {error.strerror}") from error
    if now != identity:
        raise changed_file(identity.source, "its size or time is another than at the start of the pass")
