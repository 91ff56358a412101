"""Where a run stands in its data: integers that a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from molgen_pretrain.errors import UserError


@dataclass(frozen=True)
class SourcePosition:
    """A place in the endless stream of one source's sequences: the next one is number `offset` of a block.

    `sequences` counts those drawn from it: since the start of training, in a mixture since it has had its
    present weights. An offset beyond the block's last sequence means the blocks that follow.
    """

    epoch: int = 0
    block: int = 0
    offset: int = 0
    sequences: int = 0

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> SourcePosition:
        """Raises UserError unless the state has exactly the fields, as integers from 0 up."""
        names = {item.name for item in fields(cls)}
        is_mapping = isinstance(state, Mapping)
        if not is_mapping or set(state) != names or any(type(n) is not int or n < 0 for n in state.values()):
            raise UserError(f"data position {state}: it holds integers from 0 up named {', '.join(sorted(names))}")
        return cls(**state)


@dataclass(frozen=True)
class Position:
    """A place in the order of a run: that of its one source, whose name is empty, or of each of several."""

    sources: dict[str, SourcePosition] = field(default_factory=dict)

    @property
    def sequences(self) -> int:
        return sum(source.sequences for source in self.sources.values())

    def state_dict(self) -> dict[str, Any]:
        """The one source's integers, or {"sources": {name: integers}}."""
        states = {name: asdict(source) for name, source in self.sources.items()}
        return states.get("", {"sources": states})

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Position:
        """Raises UserError for what `state_dict` does not give."""
        if set(state) != {"sources"}:
            return cls({"": SourcePosition.from_state_dict(state)})
        if not isinstance(state["sources"], Mapping):
            raise UserError(f"data position {dict(state)}: sources is a table of positions by source name")
        return cls({name: SourcePosition.from_state_dict(source) for name, source in state["sources"].items()})
