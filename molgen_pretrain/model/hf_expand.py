"""The tensors of a Hugging Face Qwen3 whose embedding rows go to other places in a larger table, a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from molgen_pretrain.errors import UserError
from molgen_pretrain.model.hf_config import EMBEDDING, HEAD, tensor_shapes
from molgen_pretrain.model.hf_snapshot import Snapshot

_ROWS_AT_A_TIME = 8192


@dataclass(frozen=True, eq=False)
class Expansion:
    """Where each row of a table of `rows` comes from, in the embedding and in an untied head.

    `places`: the row that each token of `compact` gets, in the order of its ids; its rows behind those are padding and
    vanish. All other rows are those of `snapshot`, where there is one and it has them, else `unused` (one row
    [hidden] per table, by name).
    """

    compact: Snapshot
    places: Sequence[int]
    rows: int
    unused: Mapping[str, Tensor]
    snapshot: Snapshot | None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the expanded model, by name."""
        return tensor_shapes({**self.compact.sizes, "vocab_size": self.rows})

    def pieces(self, name: str) -> Iterator[Tensor]:
        """A tensor from its first row to its last; one whole where it is no table. UserError for unreadable files."""
        if name not in (EMBEDDING, HEAD):
            yield self.compact.read(name, tuple(slice(0, size) for size in self.shapes[name]))
            return
        places = torch.tensor(self.places)
        kept = table_rows(self.compact, name, slice(0, len(places)))
        for start in range(0, self.rows, _ROWS_AT_A_TIME):
            stop = min(start + _ROWS_AT_A_TIME, self.rows)
            piece = self._unused_rows(name, start, stop)
            here = (places >= start) & (places < stop)
            piece[places[here] - start] = kept[here]
            yield piece

    def _unused_rows(self, name: str, start: int, stop: int) -> Tensor:
        rows = self.unused[name].repeat(stop - start, 1)
        if self.snapshot is not None and start < self.snapshot.rows:
            stored = table_rows(self.snapshot, name, slice(start, min(stop, self.snapshot.rows)))
            rows[: len(stored)] = stored
        return rows


def table_rows(snapshot: Snapshot, name: str, rows: slice) -> Tensor:
    """Rows of the embedding or the head, float32 [rows, hidden]."""
    return snapshot.read(name, (rows, slice(0, snapshot.sizes["hidden_size"]))).float()


def check_same_table(compact: Snapshot, snapshot: Snapshot, setting: str) -> None:
    """Raises UserError where rows of `snapshot` would not fit into a table of `compact`."""
    for name in ("hidden_size", "tie_word_embeddings"):
        ours, theirs = compact.sizes[name], snapshot.sizes[name]
        if ours != theirs:
            raise UserError(
                f"{setting}={snapshot.folder}: its {name} is {theirs}, the compact model's is {ours}; give the snapshot"
                " that the compact model began from"
            )
