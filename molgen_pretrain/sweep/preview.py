"""The plan of a sweep as text: its tree, what each edge costs, what sharing saves and what keeps points apart."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from molgen_pretrain.metrics.formats import format_percent
from molgen_pretrain.sweep.reasons import why_forked, why_trees_are_apart
from molgen_pretrain.sweep.tree import Edge, Forest, build_forest

_WIDTH = 110
_MOST_LINES = 3  # of names beside one edge, and of a note
_MOST_ALIKE = 4  # leaves of the same span at one fork that get a line each


def preview(forest: Forest, *, done: Mapping[str, int] | None = None) -> str:
    """The plan in lines of at most 110 characters.

    A shared edge (●) goes on straight down in the child with the most points; the others branch off. A leaf (○)
    has the names of its points beside it; a point that ends with a shared edge is named there. `done`: updates
    already trained, by edge.
    """
    done = done or {}
    lines = [*_totals(forest, done), "", *_in_columns(_Drawing(forest, done).rows())]
    notes = why_trees_are_apart(forest) if forest.share else _what_sharing_would_save(forest)
    for note in notes:
        lines += ["", *_wrapped(note, _WIDTH)]
    return "\n".join(lines)


def _totals(forest: Forest, done: Mapping[str, int]) -> Iterator[str]:
    planned, independent = forest.planned_steps, forest.independent_steps
    count = len(forest.candidates)
    if count == 1:
        yield f"1 point: {_steps(planned)} planned"
    elif planned == independent:
        yield f"{count:,} points: {_steps(planned)} planned, as many as independent runs take"
    else:
        saved = format_percent(1 - planned / independent)
        yield f"{count:,} points: {_steps(planned)} planned, {independent:,} as independent runs: {saved} saved"
    trained = sum(done.get(edge.key, 0) for edge in forest.edges)
    if trained:
        yield f"{_steps(trained)} done, {planned - trained:,} left to train"


def _what_sharing_would_save(forest: Forest) -> Iterator[str]:
    planned = forest.planned_steps
    shared = build_forest(forest.candidates, share=True).planned_steps
    if shared < planned:
        fewer = format_percent(1 - shared / planned)
        yield f"hydra/sweeper=trunk trains what points have in common once: {_steps(shared)}, {fewer} fewer"


@dataclass(frozen=True)
class _Row:
    """A line of the tree: the drawing and the edge, then who is concerned. `rest` draws on where that wraps."""

    drawing: str
    rest: str
    edge: str
    label: str


@dataclass(frozen=True)
class _Drawing:
    """The tree as rows."""

    forest: Forest
    done: Mapping[str, int]

    def rows(self) -> Iterator[_Row]:
        for tree in self._alike(self.forest.children(None)):
            yield from self._branch(tree, "", "")

    def _branch(self, edges: Sequence[Edge], first: str, rest: str) -> Iterator[_Row]:
        """A shared edge and all below it, or leaves alike; `first` is drawn before its first row, `rest` after."""
        if edges[0].is_leaf:
            yield self._leaves(edges, first, rest)
            return
        edge: Edge | None = edges[0]
        while edge is not None:
            label = f"{len(edge.points):,} points, {why_forked(self.forest, edge)}"
            children = [child for child in self.forest.children(edge.key) if child.steps]
            yield _Row(f"{first}● ", f"{rest}│ " if children else f"{rest}  ", self._cost(edge), label)
            first = rest
            edge = max((c for c in children if not c.is_leaf), key=lambda child: len(child.points), default=None)
            aside = list(self._alike(child for child in children if child is not edge))
            for index, branch in enumerate(aside):
                is_last = edge is None and index == len(aside) - 1
                yield from self._branch(branch, rest + ("└─" if is_last else "├─"), rest + ("  " if is_last else "│ "))

    def _leaves(self, edges: Sequence[Edge], first: str, rest: str) -> _Row:
        cost, label = self._cost(edges[0]), ", ".join(edge.owner for edge in edges)
        if len(edges) > 1:
            cost, label = f"{cost} each", f"{len(edges):,} points: {label}"
        return _Row(f"{first}○ ", f"{rest}  ", cost, label)

    def _alike(self, edges: Iterable[Edge]) -> Iterator[list[Edge]]:
        """Siblings in the order of the first of each: one by one, or together where many leaves look the same."""
        groups: dict[str, list[Edge]] = {}
        for edge in edges:
            groups.setdefault(self._cost(edge) if edge.is_leaf else edge.key, []).append(edge)
        for group in groups.values():
            yield from [group] if len(group) > _MOST_ALIKE else ([edge] for edge in group)

    def _cost(self, edge: Edge) -> str:
        text = f"{edge.start + 1:,}-{edge.end:,} · {_steps(edge.steps)}"
        done = self.done.get(edge.key, 0)
        if done == 0:
            return text
        return f"{text} · done" if done == edge.steps else f"{text} · {done:,} of {edge.steps:,} done"


def _in_columns(rows: Iterable[_Row]) -> Iterator[str]:
    """The rows with their labels below one another."""
    rows = list(rows)
    width = max((len(row.drawing) + len(row.edge) for row in rows), default=0) + 2
    for row in rows:
        drawing, edge = row.drawing, row.edge
        for text in _wrapped(row.label, _WIDTH - width):
            yield f"{drawing}{edge}".ljust(width) + text
            drawing, edge = row.rest, ""


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, max_lines=_MOST_LINES, placeholder=" …", break_on_hyphens=False)


def _steps(count: int) -> str:
    return f"{count:,} step" if count == 1 else f"{count:,} steps"
