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
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from molgen_pretrain.data.batch import Batch, assemble_tokens
from molgen_pretrain.data.files import DataPath, resolve_files
from molgen_pretrain.data.lengths import open_line_index
from molgen_pretrain.data.plan import EpochPlanner, OrderSettings, Position, SequenceCursor
from molgen_pretrain.data.reader import LineReader, changed_file
from molgen_pretrain.data.summary import DataSummary
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.data.units import CANONICAL_FIELD, EMBEDDED_FIELD, parse_unit
from molgen_pretrain.errors import UserError

logger = logging.getLogger(__name__)

_NO_LINES = np.empty(0, dtype=np.int64)


class JsonlTaggedPackedDataset(IterableDataset[Batch]):
    """Iterates over this rank's micro-batches; use with `loader.build_loader`.

    paths: a file, a folder, a glob or a list of them, as `files.resolve_files` reads it.
    seq_len: tokens per sequence. local_batch_size: sequences per micro-batch and rank.
    rank, world_size: of the data-parallel group. accumulation_steps: micro-batches per global batch and rank.
    infinite: go on with the next epoch; otherwise stop after the first one.
    last_batch: what a finite dataset does with the sequences that do not fill a global batch. "drop" leaves
        them out (training; `leftover_sequences` counts them); "pad" adds filler sequences whose labels are
        all ignored, so that every sequence comes once and every rank yields as many batches (validation).
    lookahead_limit: pending units that the packer chooses from. overflow: what happens to a unit of more than
        seq_len - 1 tokens, "truncate" or "drop". on_bad_line: "skip" (counted in `summary`) or "error".

    Raises UserError for unusable paths or arguments, if there is no usable line, and, while iterating, if a
    file changed after it was indexed.
    """

    def __init__(
        self,
        *,
        paths: DataPath | Sequence[DataPath],
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
        self._tokenizer = tokenizer
        self._seq_len = seq_len
        self._local_batch_size = local_batch_size
        self._rank, self._world_size = rank, world_size
        self._accumulation_steps = accumulation_steps
        self._infinite = infinite
        self._pad_last_batch = last_batch == "pad"
        self._min_emb_len = min_emb_len
        self._start = Position()
        self._index = open_line_index(
            resolve_files(paths, setting),
            tokenizer,
            Path(cache_dir),
            min_emb_len=min_emb_len,
            stop_at_bad_line=on_bad_line == "error",
        )
        self._reader = LineReader(self._index)
        self._summary = DataSummary.of(self._index.meta, seq_len, overflow == "drop")
        if not self._summary.units:
            raise UserError(_no_units_message(setting, self._summary))
        self._planner = EpochPlanner(
            self._index, OrderSettings(seed, seq_len, shuffle_lines, lookahead_limit, overflow == "drop")
        )

    @property
    def global_batch_size(self) -> int:
        """Sequences per global batch."""
        return self._local_batch_size * self._world_size * self._accumulation_steps

    @property
    def order_fingerprint(self) -> str:
        """Changes when the order of sequences does: a position holds only for the order it was taken in."""
        return self._planner.fingerprint(self._tokenizer.fingerprint)

    def summary(self) -> DataSummary:
        return self._summary

    def start_at(self, position: Position | Mapping[str, int]) -> None:
        """Where iterators made from now on begin: a `Batch.position`, or its `state_dict()`.

        The dataset keeps the start only; whoever consumes the batches keeps the current position. Call it
        before the loader's iterator is made, which copies the dataset into the workers.
        """
        self._start = position if isinstance(position, Position) else Position.from_state_dict(position)

    def locate(self, unit_ids: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """`file:line` (1-based) of each unit."""
        return [self._index.locate(int(line)) for line in unit_ids]

    def sequences_in_epoch(self, epoch: int = 0) -> int:
        """How many sequences an epoch has. Packs the whole epoch: about a second per million units."""
        return sum(len(self._planner.plan_block(epoch, block)) for block in range(self._planner.blocks))

    def leftover_sequences(self) -> int:
        """Sequences that a finite dataset with last_batch="drop" leaves out at its end."""
        keeps_all = self._infinite or self._pad_last_batch
        return 0 if keeps_all else self.sequences_in_epoch() % self.global_batch_size

    def __iter__(self) -> Iterator[Batch]:
        """This worker's micro-batches: every num_workers-th of the rank's, which a DataLoader interleaves."""
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for lines, position, epoch in islice(self._micro_batches(is_reporter=first == 0), first, None, step):
            yield self._materialise(lines, position, epoch)

    def _micro_batches(self, is_reporter: bool) -> Iterator[tuple[list[NDArray[np.int64]], Position, float]]:
        """(line numbers per sequence, position and epoch after the global batch) of the rank."""
        cursor = SequenceCursor(self._planner, self._start, self._infinite)
        size = self.global_batch_size
        while True:
            sequences = cursor.take(size)
            if len(sequences) < size:
                if not sequences or not self._pad_last_batch:
                    self._end_of_data(len(sequences), cursor.position, is_reporter)
                    return
                sequences += [_NO_LINES] * (size - len(sequences))
            position, epoch = cursor.position, cursor.fractional_epoch
            for micro in range(self._accumulation_steps):
                begin = (micro * self._world_size + self._rank) * self._local_batch_size
                yield sequences[begin : begin + self._local_batch_size], position, epoch

    def _end_of_data(self, leftover: int, position: Position, is_reporter: bool) -> None:
        if position.sequences == leftover and leftover:
            raise UserError(
                f"the data has {leftover} sequences of {self._seq_len} tokens, fewer than one global batch of"
                f" {self.global_batch_size}; give more data, a smaller batch, or data.infinite=true"
            )
        if leftover and is_reporter and self._rank == 0:
            logger.info("end of data: %d sequences left over, less than a global batch", leftover)

    def _materialise(self, lines: list[NDArray[np.int64]], position: Position, epoch: float) -> Batch:
        unit_ids = [int(line) for sequence in lines for line in sequence]
        encoded = self._encode(unit_ids)
        most = self._seq_len - 1
        units = iter(unit[:most] for unit in encoded)
        sequences = [list(islice(units, len(sequence))) for sequence in lines]
        input_ids, labels, tokens = assemble_tokens(sequences, self._seq_len, self._tokenizer.pad_id)
        return Batch(
            input_ids=input_ids,
            labels=labels,
            unit_ids=lines,
            tokens=tokens,
            padding=input_ids.numel() - tokens,
            truncated=sum(len(unit) > most for unit in encoded),
            position=position,
            epoch=epoch,
        )

    def _encode(self, unit_ids: list[int]) -> list[list[int]]:
        """Token ids of units, checked against the counts that they were planned with."""
        texts = []
        for line in unit_ids:
            unit = parse_unit(self._reader.read(line), self._min_emb_len)
            if not isinstance(unit, str):
                raise changed_file(self._index.locate(line), f"the line is now bad: {unit.value}")
            texts.append(unit)
        encoded = self._tokenizer.encode_batch(texts)
        counts = self._index.token_counts(np.array(unit_ids, dtype=np.int64))
        for line, ids, count in zip(unit_ids, encoded, counts.tolist(), strict=True):
            if len(ids) != count:
                raise changed_file(self._index.locate(line), f"the line had {count} tokens and has {len(ids)}")
        return encoded


def _check_choice(setting: str, value: str, legal: tuple[str, ...]) -> None:
    if value not in legal:
        raise UserError(f"{setting}={value}: must be one of {', '.join(legal)}")


def _check_at_least(setting: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{setting}={value}: must be at least {least}")


def _no_units_message(setting: str, summary: DataSummary) -> str:
    reason = summary.describe_bad_lines() or "the files are empty"
    if summary.dropped_units:
        reason = f"{summary.dropped_units} units are longer than data.seq_len - 1 tokens and dropped"
    return (
        f"{setting}: no usable line in {summary.files} files: {reason}; a line is a JSON object with"
        f" {CANONICAL_FIELD} and {EMBEDDED_FIELD}"
    )
