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
from molgen_pretrain.data.token_classes import count_classes

# The label that cross entropy leaves out (torch's default `ignore_index`).
IGNORED_LABEL = -100
_FEWEST_BORDERS = 64


@dataclass(slots=True)
class Batch:
    """`input_ids` and `labels` are int64 [local_batch_size, seq_len].

    Each unit is followed by one separator (the pad token), which also fills the rest of a row. labels[t] is
    input[t + 1], separators between units included; the last real token and the padding have IGNORED_LABEL.

    With a document mask `position_ids` (int64, same shape) restarts at 0 with each unit, to which its
    separator belongs, and with a row's padding; the label at a separator is IGNORED_LABEL then: it would
    predict the next unit. `unit_borders` (int32 [n]) are the places in the flattened batch where that happens, and
    after them the end, as often as makes n a power of two, at least 64: kernels take units of no length, and an n
    that changes with each batch would be costly. `token_classes` (uint8, same shape), where asked for, is the
    class of each label.

    `unit_ids` holds each sequence's units (empty for a filler sequence). `tokens` and `padding` count input
    positions, `trained` labels, `class_tokens` (int64 [classes]) those of each class, `attention_pairs` the pairs of
    a place and one that it attends to, itself included, `truncated` units that were cut, `dropped` the units that
    the whole global batch passed over (on its first micro-batch of rank 0, elsewhere 0). They are on the host,
    whatever the device of the tensors. `position`, `epoch` (fractional, over the lines of all
    sources) and `source_epochs` (of each source of a mixture) say where the data stands after the whole global
    batch that this micro-batch belongs to: save `position` to resume after it.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor | None
    unit_borders: torch.Tensor | None
    token_classes: torch.Tensor | None
    unit_ids: list[NDArray[np.int64]]
    tokens: int
    padding: int
    trained: int
    class_tokens: NDArray[np.int64] | None
    attention_pairs: int
    truncated: int
    dropped: int
    position: Position
    epoch: float
    source_epochs: dict[str, float]

    @property
    def model_inputs(self) -> tuple[torch.Tensor | int | None, ...]:
        """What the model's forward takes, in its order."""
        return self.input_ids, self.labels, self.position_ids, self.token_classes, self.unit_borders, self.trained

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        moved = {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self._tensors().items()}
        return replace(self, **moved)  # type: ignore[arg-type]

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the tensors' memory from another stream's use until `stream` has done what it was given so far."""
        for tensor in self._tensors().values():
            tensor.record_stream(stream)

    def _tensors(self) -> dict[str, torch.Tensor]:
        named = {
            "input_ids": self.input_ids,
            "labels": self.labels,
            "position_ids": self.position_ids,
            "unit_borders": self.unit_borders,
            "token_classes": self.token_classes,
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}


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
        labels = self._labels(ids, with_document_mask)
        is_trained = labels.numpy() != IGNORED_LABEL
        # Whatever attends to itself and to what stands before it: units and paddings, or whole rows.
        borders = layout.borders() if with_document_mask else np.arange(0, ids.size + 1, layout.seq_len)
        lengths = np.diff(borders)
        return Batch(
            input_ids=self._tensor(ids, torch.int64),
            labels=labels,
            position_ids=self._tensor(_positions(borders, ids.shape), torch.int64) if with_document_mask else None,
            unit_borders=self._tensor(_filled_up(borders), torch.int32) if with_document_mask else None,
            token_classes=None if self.classes is None else self._tensor(self.classes, torch.uint8),
            unit_ids=self.sequences.unit_ids(),
            tokens=tokens,
            padding=ids.size - tokens,
            trained=int(np.count_nonzero(is_trained)),
            class_tokens=None if self.classes is None else count_classes(self.classes[is_trained]),
            attention_pairs=int((lengths * (lengths + 1) // 2).sum()),
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


def _positions(borders: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """[rows, seq_len]: distance from the last of `borders`, which end with the end."""
    positions = np.arange(borders[-1]) - np.repeat(borders[:-1], np.diff(borders))
    return positions.reshape(shape)


def _filled_up(borders: NDArray[np.int64]) -> NDArray[np.int64]:
    """The last border again and again, up to a power of two."""
    size = max(_FEWEST_BORDERS, 1 << (len(borders) - 1).bit_length())
    return np.pad(borders, (0, size - len(borders)), mode="edge")
