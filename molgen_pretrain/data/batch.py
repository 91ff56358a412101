"""Micro-batches: what one rank trains on in one forward pass, and the compact form in which workers send them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from molgen_pretrain.data.position import Position
from molgen_pretrain.data.sequences import Layout, Sequences

# The label that cross entropy leaves out (torch's default `ignore_index`).
IGNORED_LABEL = -100


@dataclass(slots=True)
class Batch:
    """`input_ids` and `labels` are int64 [local_batch_size, seq_len].

    Each unit is followed by one separator (the pad token), which also fills the rest of a row. labels[t] is
    input[t + 1], separators between units included; the last real token and the padding have IGNORED_LABEL.

    With a document mask `position_ids` (int64, same shape) restarts at 0 with each unit, to which its
    separator belongs, and with a row's padding; the label at a separator is IGNORED_LABEL then: it would
    predict the next unit. `token_classes` (uint8, same shape), where asked for, is the class of each label.

    `unit_ids` holds each sequence's units (empty for a filler sequence). `tokens` and `padding` count input
    positions, `truncated` units that were cut, `dropped` the units that the whole global batch passed over
    (on its first micro-batch of rank 0, elsewhere 0). `position`, `epoch` (fractional, over the lines of all
    sources) and `source_epochs` (of each source of a mixture) say where the data stands after the whole global
    batch that this micro-batch belongs to: save `position` to resume after it.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor | None
    token_classes: torch.Tensor | None
    unit_ids: list[NDArray[np.int64]]
    tokens: int
    padding: int
    truncated: int
    dropped: int
    position: Position
    epoch: float
    source_epochs: dict[str, float]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        def moved(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=non_blocking)

        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
            position_ids=moved(self.position_ids),
            token_classes=moved(self.token_classes),
        )


class Stamp(NamedTuple):
    """What a micro-batch says about where the data stands, as in `Batch`."""

    position: Position
    epoch: float
    source_epochs: dict[str, float]
    dropped: int


@dataclass(slots=True)
class PackedBatches:
    """Consecutive micro-batches of a rank, small enough to travel from a worker through a pipe.

    No shared memory, whose set-up costs more than the copying at these sizes, and which containers often have too
    little of. `ids` [rows, seq_len] has the smallest type that holds the vocabulary, `classes` (uint8) its shape.
    Units that are all in the system's memory already travel as `starts` [units] in the token cache instead. Each
    of `stamps` stands for as many rows as the others.
    """

    sequences: Sequences
    layout: Layout
    stamps: list[Stamp]
    ids: NDArray | None = None
    starts: NDArray[np.int64] | None = None
    classes: NDArray[np.uint8] | None = None
    is_pinned: bool = False

    def pin_memory(self) -> PackedBatches:
        """Called by the DataLoader: what is made of it later is pinned, so that copies to a GPU do not block."""
        return replace(self, is_pinned=True)

    def split(self) -> Iterator[PackedBatches]:
        """The micro-batches one by one."""
        rows = len(self.sequences) // len(self.stamps)
        for number, stamp in enumerate(self.stamps):
            begin, end = number * rows, (number + 1) * rows
            units = slice(int(self.sequences.bounds[begin]), int(self.sequences.bounds[end]))
            yield PackedBatches(
                sequences=self.sequences.slice(begin, end),
                layout=self.layout.slice(begin, end, units),
                ids=None if self.ids is None else self.ids[begin:end],
                starts=None if self.starts is None else self.starts[units],
                classes=None if self.classes is None else self.classes[begin:end],
                stamps=[stamp],
                is_pinned=self.is_pinned,
            )

    def batch(self, ids: NDArray, with_document_mask: bool) -> Batch:
        """The tensors of a single micro-batch of these ids."""
        layout, [stamp] = self.layout, self.stamps
        tokens = int(layout.filled.sum())
        return Batch(
            input_ids=self._tensor(ids, torch.int64),
            labels=self._labels(ids, with_document_mask),
            position_ids=self._tensor(_positions(layout, ids.shape), torch.int64) if with_document_mask else None,
            token_classes=None if self.classes is None else self._tensor(self.classes, torch.uint8),
            unit_ids=self.sequences.unit_ids(),
            tokens=tokens,
            padding=ids.size - tokens,
            truncated=int(np.count_nonzero(layout.kept < self.sequences.counts)),
            dropped=stamp.dropped,
            position=stamp.position,
            epoch=stamp.epoch,
            source_epochs=stamp.source_epochs,
        )

    def _labels(self, ids: NDArray, with_document_mask: bool) -> torch.Tensor:
        tensor = self._empty(ids.shape, torch.int64)
        labels = tensor.numpy().reshape(-1)
        labels[:-1] = ids.reshape(-1)[1:]
        labels[self.layout.seq_len - 1 :: self.layout.seq_len] = IGNORED_LABEL
        for padding in self.layout.paddings():
            labels[max(padding.start - 1, 0) : padding.stop] = IGNORED_LABEL
        if with_document_mask:
            labels[self.layout.separators] = IGNORED_LABEL
        return tensor

    def _tensor(self, values: NDArray, dtype: torch.dtype) -> torch.Tensor:
        tensor = self._empty(values.shape, dtype)
        tensor.numpy()[:] = values
        return tensor

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=self.is_pinned)


def _positions(layout: Layout, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """[rows, seq_len]: distance from the first token of the unit, or of the row's padding."""
    rows, seq_len = shape
    padding_starts = np.arange(rows) * seq_len + layout.filled
    starts = np.sort(np.concatenate([layout.places, padding_starts[layout.filled < seq_len]]))
    positions = np.arange(rows * seq_len) - np.repeat(starts, np.diff(starts, append=rows * seq_len))
    return positions.reshape(shape)
