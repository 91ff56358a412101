"""The dataset of packed training sequences: this rank's share of a global order.

Global batch k of a run is the sequences [k * G, (k + 1) * G) of the order, with G = local_batch_size *
world_size * accumulation_steps; micro-batch m of rank r is the `local_batch_size` sequences from
k * G + (m * world_size + r) * local_batch_size on. So ranks, workers and restarts divide the work and never
change which sequences meet in a global batch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from molgen_pretrain.data.batch import Batch, PackedBatches, Stamp
from molgen_pretrain.data.corpus import open_corpus
from molgen_pretrain.data.files import DataPath, resolve_files
from molgen_pretrain.data.mixture import Source
from molgen_pretrain.data.plan import OrderSettings
from molgen_pretrain.data.position import Position
from molgen_pretrain.data.sequences import Layout, Sequences
from molgen_pretrain.data.summary import DataSummary
from molgen_pretrain.data.token_cache import id_type
from molgen_pretrain.data.token_classes import TokenClassifier
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.errors import UserError

logger = logging.getLogger(__name__)

# What `packed` makes at a time: many units for one call of the tokenizer, few messages between processes. Messages
# of ids are largest where pipes are still quick (256 KiB), those of places in the token cache are small anyway.
_POSITIONS_AT_ONCE = 2**16
_POSITIONS_AT_ONCE_OF_CACHE = 2**18
_MICRO_BATCHES_AT_ONCE = 64


class JsonlTaggedPackedDataset(IterableDataset[Batch]):
    """Iterates over this rank's micro-batches; use with `loader.build_loader`.

    paths: a file, a folder, a glob or a list of them, as `files.resolve_files` reads it; or
    sources: a mixture, whose sequences come from each source in exact proportion to its weight.
    seq_len: tokens per sequence. local_batch_size: sequences per micro-batch and rank.
    rank, world_size: of the data-parallel group. accumulation_steps: micro-batches per global batch and rank.
    infinite: go on with the next epoch (each source with its own); otherwise stop after the first one, which
        a mixture does not have.
    last_batch: what a finite dataset does with the sequences that do not fill a global batch. "drop" leaves
        them out (training; `leftover_sequences` counts them); "pad" adds filler sequences whose labels are
        all ignored, so that every sequence comes once and every rank yields as many batches (validation).
    lookahead_limit: pending units that the packer chooses from. overflow: what happens to a unit of more than
        seq_len - 1 tokens, "truncate" or "drop". on_bad_line: "skip" (counted in `summary`) or "error".
    cache, cache_budget_bytes, index_processes: `token_cache`, `budget_bytes` (over all sources) and `processes`
        of `lengths.open_line_index`. The batches are the same with token ids and without.
    document_mask, token_classes: give batches their `position_ids` and `token_classes`.

    Raises UserError for unusable paths or arguments, if there is no usable line, and, while iterating, if a
    file changed after it was indexed.
    """

    def __init__(
        self,
        *,
        paths: DataPath | Sequence[DataPath] | None = None,
        sources: Sequence[Source] = (),
        tokenizer: UnitTokenizer,
        seq_len: int,
        local_batch_size: int,
        cache_dir: str | os.PathLike[str],
        rank: int = 0,
        world_size: int = 1,
        accumulation_steps: int = 1,
        seed: int = 0,
        shuffle_lines: bool = True,
        infinite: bool = True,
        last_batch: str = "drop",
        min_emb_len: int = 16,
        lookahead_limit: int = 65536,
        overflow: str = "truncate",
        on_bad_line: str = "skip",
        cache: str = "lengths",
        cache_budget_bytes: int | None = None,
        index_processes: int | None = None,
        document_mask: bool = False,
        token_classes: bool = False,
        setting: str = "data.train_path",
    ) -> None:
        _check_choice("last_batch", last_batch, ("drop", "pad"))
        _check_choice("data.overflow", overflow, ("truncate", "drop"))
        _check_choice("data.on_bad_line", on_bad_line, ("skip", "error"))
        _check_at_least("data.seq_len", seq_len, 2)
        _check_at_least("data.lookahead_limit", lookahead_limit, 1)
        _check_at_least("training.local_batch_size", local_batch_size, 1)
        _check_at_least("accumulation_steps", accumulation_steps, 1)
        if not 0 <= rank < world_size:
            raise UserError(f"rank={rank}: must lie in 0 .. world_size - 1 = {world_size - 1}")
        if (paths is None) == (not sources):
            raise ValueError("give either paths or sources")
        if paths is not None:
            sources = [Source("", resolve_files(paths, setting), 1.0)]
        if len(sources) > 1 and not infinite:
            raise UserError("data.infinite=false: a mixture (data.sources) has no end; set data.infinite=true")
        self._tokenizer = tokenizer
        self._seq_len = seq_len
        self._local_batch_size = local_batch_size
        self._rank, self._world_size = rank, world_size
        self._accumulation_steps = accumulation_steps
        self._infinite = infinite
        self._pad_last_batch = last_batch == "pad"
        self._has_document_mask = document_mask
        self._classifier = TokenClassifier(tokenizer) if token_classes else None
        self._corpus = open_corpus(
            sources,
            OrderSettings(seed, seq_len, shuffle_lines, lookahead_limit, overflow == "drop"),
            tokenizer,
            Path(cache_dir),
            min_emb_len=min_emb_len,
            stop_at_bad_line=on_bad_line == "error",
            token_cache=cache,
            budget_bytes=cache_budget_bytes,
            processes=index_processes,
            setting=setting,
        )
        self._starts = self._corpus.starts(Position())

    @property
    def global_batch_size(self) -> int:
        """Sequences per global batch."""
        return self._local_batch_size * self._world_size * self._accumulation_steps

    @property
    def order_fingerprint(self) -> str:
        """Changes when the order of sequences does: a position holds only for the order it was taken in."""
        return self._corpus.fingerprint(self._tokenizer.fingerprint)

    def summary(self) -> DataSummary:
        return self._corpus.summary()

    def start_at(self, position: Position | Mapping[str, Any]) -> None:
        """Where iterators made from now on begin: a `Batch.position`, or its `state_dict()`.

        The dataset keeps the start only; whoever consumes the batches keeps the current position. Call it
        before the loader's iterator is made, which copies the dataset into the workers. A mixture may have
        gained or lost sources since, and changed its weights: each source goes on where it stood. Raises
        UserError where one of the two is a mixture and the other is not.
        """
        position = position if isinstance(position, Position) else Position.from_state_dict(position)
        self._starts = self._corpus.starts(position)

    def locate(self, unit_ids: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """`file:line` (1-based) of each unit."""
        return [self._corpus.locate(int(unit)) for unit in unit_ids]

    def sequences_in_epoch(self, epoch: int = 0) -> int:
        """How many sequences an epoch (of each source) has. Packs it: about a second per million units."""
        return self._corpus.sequences_in_epoch(epoch)

    def leftover_sequences(self) -> int:
        """Sequences that a finite dataset with last_batch="drop" leaves out at its end."""
        keeps_all = self._infinite or self._pad_last_batch
        return 0 if keeps_all else self.sequences_in_epoch() % self.global_batch_size

    def __iter__(self) -> Iterator[Batch]:
        """The rank's micro-batches, each made when it is asked for. `loader.build_loader` works ahead."""
        for packed in self.packed(at_once=1):
            yield from self.unpack(packed)

    @property
    def micro_batches_at_once(self) -> int:
        """How many `packed` had better make at a time."""
        positions = _POSITIONS_AT_ONCE_OF_CACHE if self._is_copied_late else _POSITIONS_AT_ONCE
        return min(max(positions // (self._local_batch_size * self._seq_len), 1), _MICRO_BATCHES_AT_ONCE)

    def packed(self, at_once: int, first: int = 0, step: int = 1) -> Iterator[PackedBatches]:
        """The rank's micro-batches in groups: groups number first, first + step, ... for one of `step` workers.

        Each worker's first group is a single micro-batch, so that training begins at once; groups double until
        they have `at_once`. They are the same for any worker: dealing them out in turn keeps the order.
        """
        micro_batches = self._micro_batches(is_reporter=first == 0)
        for number in count():
            size = min(2 ** min(number // step, 30), at_once)
            group = list(islice(micro_batches, size))
            if not group:
                return
            if number % step == first:
                yield self._pack(group)

    def unpack(self, packed: PackedBatches) -> Iterator[Batch]:
        """The batches of what `packed` gave, in this or another process."""
        for one in packed.split():
            ids = one.ids
            if ids is None:
                assert one.starts is not None
                ids = self._separators(one.layout)
                self._corpus.copy(ids.reshape(-1), one.sequences, one.layout, one.starts)
            yield one.batch(ids, self._has_document_mask)

    @property
    def _is_copied_late(self) -> bool:
        """Whether units are only fetched by `packed` and copied by `unpack`: half the work of sending them."""
        return self._corpus.has_tokens and self._classifier is None

    def _pack(self, group: list[tuple[Sequences, Stamp]]) -> PackedBatches:
        sequences = Sequences.joined(part for part, _ in group)
        layout = Layout.of(sequences, self._seq_len)
        stamps = [stamp for _, stamp in group]
        if self._is_copied_late:
            return PackedBatches(sequences, layout, stamps, starts=self._corpus.fetch(sequences, layout))
        ids = self._separators(layout)
        self._corpus.write(ids.reshape(-1), sequences, layout)
        classes = self._classifier.label_classes(ids, layout) if self._classifier else None
        return PackedBatches(sequences, layout, stamps, ids=ids, classes=classes)

    def _separators(self, layout: Layout) -> NDArray:
        """[rows, seq_len] with the separators and the padding in place, for the units to be written into."""
        dtype = id_type(self._tokenizer.size).newbyteorder("=")
        ids = np.empty((len(layout.filled), self._seq_len), dtype=dtype)
        flat = ids.reshape(-1)
        flat[layout.separators] = self._tokenizer.pad_id
        for padding in layout.paddings():
            flat[padding] = self._tokenizer.pad_id
        return ids

    def _micro_batches(self, is_reporter: bool) -> Iterator[tuple[Sequences, Stamp]]:
        """The rank's share of the order, planned only."""
        cursor = self._corpus.cursor(self._starts, self._infinite)
        size = self.global_batch_size
        dropped = 0
        while True:
            sequences = cursor.take(size)
            found = len(sequences)
            if found < size:
                if not found or not self._pad_last_batch:
                    self._end_of_data(found, cursor.position, is_reporter)
                    return
                sequences = sequences.with_fillers(size - found)
            stamp = Stamp(cursor.position, *self._corpus.epochs(cursor.lines_passed), dropped=0)
            for micro in range(self._accumulation_steps):
                begin = (micro * self._world_size + self._rank) * self._local_batch_size
                is_first = begin == 0
                yield (
                    sequences.slice(begin, begin + self._local_batch_size),
                    stamp._replace(dropped=cursor.dropped - dropped) if is_first else stamp,
                )
            dropped = cursor.dropped

    def _end_of_data(self, leftover: int, position: Position, is_reporter: bool) -> None:
        if position.sequences == leftover and leftover:
            raise UserError(
                f"the data has {leftover} sequences of {self._seq_len} tokens, fewer than one global batch of"
                f" {self.global_batch_size}; give more data, a smaller batch, or data.infinite=true"
            )
        if leftover and is_reporter and self._rank == 0:
            logger.info("end of data: %d sequences left over, less than a global batch", leftover)


def _check_choice(setting: str, value: str, legal: tuple[str, ...]) -> None:
    if value not in legal:
        raise UserError(f"{setting}={value}: must be one of {', '.join(legal)}")


def _check_at_least(setting: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{setting}={value}: must be at least {least}")
