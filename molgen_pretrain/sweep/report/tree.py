"""The tree of a sweep whose points share parts: its lanes from top to bottom, and as text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from molgen_pretrain.metrics.formats import format_duration
from molgen_pretrain.sweep.report.records import EdgeRecord, Sweep


@dataclass(frozen=True)
class Lane:
    edge: EdgeRecord
    rows_to_parent: int  # so many lanes further up; 0 for one that begins from initial weights
    rails: tuple[bool, ...]  # for each ancestor's level, whether another child of it follows below


def lanes(sweep: Sweep) -> list[Lane]:
    """The edges in the order in which they are drawn: each below its parent, those that fork on last."""
    children: dict[str | None, list[EdgeRecord]] = {}
    for edge in sweep.edges:
        children.setdefault(edge.parent, []).append(edge)
    found: list[Lane] = []

    def add(parent: str | None, parent_row: int, rails: tuple[bool, ...]) -> None:
        below = sorted(children.get(parent, []), key=lambda edge: edge.key in children)
        for i, edge in enumerate(below):
            row, is_root = len(found), parent is None
            own = () if is_root else (*rails, i < len(below) - 1)
            found.append(Lane(edge, 0 if is_root else row - parent_row, own))
            add(edge.key, row, own)

    add(None, 0, ())
    return found


def tree_text(sweep: Sweep) -> Iterator[str]:
    """A line per edge: its branch, steps, state and cost."""
    drawn = lanes(sweep)
    names = [_branch(lane) + lane.edge.key for lane in drawn]
    spans = [f"{lane.edge.start:,} to {lane.edge.last:,}" for lane in drawn]
    for lane, name, span in zip(drawn, names, spans, strict=True):
        edge = lane.edge
        parts = [
            name.ljust(max(map(len, names))),
            span.rjust(max(map(len, spans))),
            edge.status.value.ljust(11),
            f"{edge.cost.steps:>7,} steps  {format_duration(edge.cost.seconds)}",
            f"shared by {len(edge.points)}" if len(edge.points) > 1 else "",
        ]
        yield "  ".join(parts).rstrip()


def _branch(lane: Lane) -> str:
    if not lane.rails:
        return ""
    *outer, is_followed = lane.rails
    return "".join("│  " if rail else "   " for rail in outer) + ("├─ " if is_followed else "└─ ")
