"""Weights of a Hugging Face snapshot, straight into a sharded model: every rank reads its own parts alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from molgen_pretrain.errors import UserError
from molgen_pretrain.model.hf_config import EMBEDDING, HEAD
from molgen_pretrain.model.hf_snapshot import Snapshot
from molgen_pretrain.model.init import normal, own_part

logger = logging.getLogger(__name__)

NewTokens = Literal["normal", "mean"]

_NEW = -1
_ROWS_AT_A_TIME = 8192  # of the embedding, while their mean is taken


@dataclass(frozen=True, eq=False)
class RowPlan:
    """What each row of a model's embedding, and of its head, begins as.

    `old_rows` int64 [rows of the model]: the row of the snapshot that is copied, bit for bit, or -1 for one that is
    new: normal with standard deviation hidden_size^-0.5, or the mean of the snapshot's first `base_tokens` rows, those
    of its tokens. The head's, where it is not tied, are made from the head.
    """

    old_rows: NDArray[np.int64]
    base_tokens: int
    new_tokens: NewTokens

    @classmethod
    def extended(
        cls, snapshot: Snapshot, *, base_tokens: int, tokens: int, rows: int, new_tokens: NewTokens = "normal"
    ) -> RowPlan:
        """For a tokenizer that has the snapshot's tokens and, behind those, `tokens - base_tokens` more.

        The added ones' rows are new, though the snapshot may have rows of these numbers: nothing has trained them.
        Rows behind the tokens are copied too, and are new from where the snapshot has none.
        """
        old_rows = np.arange(rows)
        old_rows[base_tokens:tokens] = _NEW
        return cls._checked(snapshot, old_rows, base_tokens, new_tokens)

    @classmethod
    def gathered(
        cls,
        snapshot: Snapshot,
        old_ids: Sequence[int | None],
        *,
        base_tokens: int,
        rows: int,
        new_tokens: NewTokens = "normal",
    ) -> RowPlan:
        """For a tokenizer with other ids: `old_ids` has the snapshot's id of each of its tokens, or None.

        The rows behind the tokens are new as well.
        """
        old_rows = np.full(rows, _NEW)
        old_rows[: len(old_ids)] = [_NEW if old is None else old for old in old_ids]
        return cls._checked(snapshot, old_rows, base_tokens, new_tokens)

    @classmethod
    def _checked(
        cls, snapshot: Snapshot, old_rows: NDArray[np.int64], base_tokens: int, new_tokens: NewTokens
    ) -> RowPlan:
        if not 0 < base_tokens <= snapshot.rows:
            raise UserError(
                f"init.from={snapshot.folder}: its embedding has {snapshot.rows} rows and its tokenizer {base_tokens}"
                " tokens, so they do not belong together; give a snapshot with its own tokenizer"
            )
        old_rows[old_rows >= snapshot.rows] = _NEW
        return cls(old_rows, base_tokens, new_tokens)

    @property
    def new_rows(self) -> NDArray[np.int64]:
        """The numbers of the rows that are new, ascending."""
        return np.flatnonzero(self.old_rows == _NEW)


@torch.no_grad()
def load_snapshot(model: nn.Module, snapshot: Snapshot, plan: RowPlan, *, seed: int) -> None:
    """Fill every parameter in place, whatever the sharding, without a word between ranks.

    The model's sizes are the snapshot's (`size_problems`), but for its rows, which are the plan's. New rows depend
    on `seed` and the parameter's name alone. A rank needs its own parts and one parameter's slice of the file in
    memory; new rows, in full, besides. Raises UserError where a file cannot be read.
    """
    began = time.perf_counter()
    for name, parameter in model.named_parameters():
        box, part = own_part(parameter)
        if name in (EMBEDDING, HEAD):
            _load_rows(part, box, name, snapshot, plan, seed)
        elif part.numel():
            part.copy_(snapshot.read(name, box))
    copied, new = len(plan.old_rows) - len(plan.new_rows), len(plan.new_rows)
    logger.info(
        "weights: from %s in %.1f s; embedding: %d rows copied, %d new (%s)",
        snapshot.folder,
        time.perf_counter() - began,
        copied,
        new,
        plan.new_tokens,
    )


def _load_rows(part: Tensor, box: tuple[slice, ...], name: str, snapshot: Snapshot, plan: RowPlan, seed: int) -> None:
    rows, columns = box
    old_rows = plan.old_rows[rows]
    with snapshot.opened(name) as stored:
        for start, stop in _runs(old_rows):
            first = int(old_rows[start])
            part[start:stop].copy_(stored[first : first + stop - start, columns])
    new_rows = plan.new_rows
    places = np.flatnonzero((new_rows >= rows.start) & (new_rows < rows.stop))
    if len(places):
        values = _new_values(name, snapshot, plan, seed)[torch.from_numpy(places), columns]
        part[torch.from_numpy(new_rows[places] - rows.start)] = values.to(part.device)


def _runs(old_rows: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """(start, stop) of what lies side by side in the snapshot too; new rows are left out."""
    ends = np.flatnonzero(np.diff(old_rows) != 1) + 1
    for start, stop in zip([0, *ends.tolist()], [*ends.tolist(), len(old_rows)], strict=True):
        if start < stop and old_rows[start] != _NEW:
            yield start, stop


def _new_values(name: str, snapshot: Snapshot, plan: RowPlan, seed: int) -> Tensor:
    """float32 [new rows, hidden]: all of them, so that every rank gets the same whatever its part."""
    shape = len(plan.new_rows), int(snapshot.sizes["hidden_size"])
    if plan.new_tokens == "normal":
        return normal(shape, shape[1] ** -0.5, seed=seed, name=name)
    total = torch.zeros(shape[1], dtype=torch.float64)
    for start in range(0, plan.base_tokens, _ROWS_AT_A_TIME):
        rows = slice(start, min(start + _ROWS_AT_A_TIME, plan.base_tokens))
        total += snapshot.read(name, (rows, slice(0, shape[1]))).double().sum(dim=0)
    return (total / plan.base_tokens).float().expand(shape)
