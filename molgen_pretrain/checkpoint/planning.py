"""Agreeing on who writes what, once for many saves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from molgen_pretrain.checkpoint.files import encode_json
from molgen_pretrain.checkpoint.ranks import Ranks
from molgen_pretrain.checkpoint.shards import Piece, StoredTensor, assign_writers, describe
from molgen_pretrain.checkpoint.storage import index_to_json


@dataclass(frozen=True)
class Plan:
    """Which tensors this rank writes, and the index of all, encoded (on rank 0; empty elsewhere)."""

    mine: list[str]
    index: bytes


class Planner:
    """Plans a save, and gives the same plan again while every rank holds what it held.

    With many ranks, exchanging and assigning a thousand tensors takes seconds, in which training stands still.
    """

    def __init__(self) -> None:
        self._held: dict[str, Piece] | None = None
        self._ties: dict[str, str] = {}
        self._plan = Plan([], b"")

    def plan(
        self, ranks: Ranks, tensors: Mapping[str, Tensor], ties: Mapping[str, str], beside: Callable[[], object]
    ) -> Plan:
        """Agree on the plan. Collective. `beside` runs on every rank within the same exchange.

        Raises:
            RankFailure: on every rank, if `beside` or the description of the tensors failed on any.
            ValueError: on every rank, if the ranks hold different tensors.
        """
        held: dict[str, Piece] = {}

        def look() -> bool:
            beside()
            held.update(describe(tensors))
            return (held, ties) == (self._held, self._ties)

        if not all(ranks.together(look)):
            stored = assign_writers(ranks.together(lambda: held))
            index = encode_json({"tensors": index_to_json(stored), "ties": dict(ties)}) if ranks.is_first else b""
            self._plan = Plan(_written_by(ranks.rank, stored), index)
            self._held, self._ties = held, dict(ties)
        return self._plan


def _written_by(rank: int, stored: Mapping[str, StoredTensor]) -> list[str]:
    return [name for name, tensor in stored.items() if any(writer == rank for writer, _ in tensor.parts)]
