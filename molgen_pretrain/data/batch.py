"""A micro-batch: what one rank trains on in one forward pass, and where it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from molgen_pretrain.data.plan import Position

# The label that cross entropy leaves out (torch's default `ignore_index`).
IGNORED_LABEL = -100


@dataclass(slots=True)
class Batch:
    """`input_ids` and `labels` are int64 [local_batch_size, seq_len].

    `unit_ids` holds each sequence's line numbers (empty for a filler sequence). `tokens` and `padding` count
    input positions, `truncated` units that were cut. `position` and `epoch` (fractional) say where the data
    stands after the whole global batch that this micro-batch belongs to: save `position` to resume after it.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    unit_ids: list[NDArray[np.int64]]
    tokens: int
    padding: int
    truncated: int
    position: Position
    epoch: float

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Batch:
        """Called by the DataLoader."""
        return replace(self, input_ids=self.input_ids.pin_memory(), labels=self.labels.pin_memory())


def assemble_tokens(
    sequences: Sequence[Sequence[Sequence[int]]], seq_len: int, pad_id: int
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """(input_ids, labels, number of non-padding tokens) of sequences of units of token ids.

    Each unit is followed by one `pad_id`, which separates; the rest of the row is filled with it. labels[t]
    is input[t + 1], separators between units included; the last real token and the padding have
    IGNORED_LABEL.
    """
    input_ids = np.full((len(sequences), seq_len), pad_id, dtype=np.int64)
    labels = np.full((len(sequences), seq_len), IGNORED_LABEL, dtype=np.int64)
    tokens = 0
    for row, units in enumerate(sequences):
        end = 0
        for unit in units:
            input_ids[row, end : end + len(unit)] = unit
            end += len(unit) + 1
        if end:
            labels[row, : end - 1] = input_ids[row, 1:end]
        tokens += end
    return torch.from_numpy(input_ids), torch.from_numpy(labels), tokens
