"""The prefix tree of a sweep: which part of which runs is trained once for several points."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from molgen_pretrain.schedules import Schedule, WSDAdaptive
from molgen_pretrain.sweep.first_difference import first_difference


@dataclass(frozen=True)
class Candidate:
    """A point of a sweep, as far as sharing goes."""

    name: str  # unique in the sweep
    schedule: Schedule
    steps: int  # training.steps
    settings: Mapping[str, Any]  # "section.key" -> value of all else that decides the run


@dataclass(frozen=True)
class Edge:
    """Updates `start` + 1 to `end` of the runs of `points`, trained once, with the config of `owner`.

    It begins from the weights of `parent` after update `start`, or from the initial ones. Each point has one leaf
    edge, which has its name and is empty where an edge that it shares already trains it to its end.
    """

    key: str
    start: int
    end: int
    points: tuple[str, ...]
    parent: str | None
    owner: str

    @property
    def is_leaf(self) -> bool:
        return self.points == (self.key,)

    @property
    def steps(self) -> int:
        """Updates to be trained."""
        return self.end - self.start


@dataclass(frozen=True)
class Forest:
    """All edges of a sweep, parents before their children; points that share nothing are trees of their own."""

    candidates: tuple[Candidate, ...]
    edges: tuple[Edge, ...]
    share: bool  # whether points may share edges at all

    @property
    def planned_steps(self) -> int:
        """Updates that training every edge once takes."""
        return sum(edge.steps for edge in self.edges)

    @property
    def independent_steps(self) -> int:
        """Updates that the points would take as runs of their own."""
        return sum(point.steps for point in self.candidates)

    def children(self, key: str | None) -> tuple[Edge, ...]:
        """The edges that begin where `key` ends; those that begin from initial weights for None."""
        return tuple(edge for edge in self.edges if edge.parent == key)


def build_forest(points: Sequence[Candidate], *, share: bool) -> Forest:
    """The fewest steps that train every point: points share updates 1 to s, the largest s that fits two conditions.

    Their settings are equal, and so are lr, weight decay and beta2 (==) of each of those updates. Points of a
    WSDAdaptive, whose curve and end are not known beforehand, share nothing. Without `share` nobody does.
    """
    edges: list[Edge] = []
    keys = {point.name for point in points}
    trees = _trees(points) if share else [[point] for point in points]
    to_grow: list[tuple[list[Candidate], int, str | None]] = [(tree, 0, None) for tree in reversed(trees)]
    while to_grow:
        branch, start, parent = to_grow.pop()
        names = tuple(point.name for point in branch)
        if len(branch) == 1:
            edges.append(Edge(names[0], start, branch[0].steps, names, parent, owner=names[0]))
            continue
        end = _shared_until(branch, start)
        key = _unique(f"steps-{start}-{end}", keys)
        keys.add(key)
        # A point that ends with the edge leaves there the last validation and log row that a run alone would have.
        owner = next((point.name for point in branch if point.steps == end), names[0])
        edges.append(Edge(key, start, end, names, parent, owner))
        to_grow += [(fork, end, key) for fork in reversed(_forks(branch, end))]
    return Forest(tuple(points), tuple(edges), share)


def by_settings(points: Iterable[Candidate]) -> list[list[Candidate]]:
    """`points` in groups of equal settings."""
    groups: list[list[Candidate]] = []
    for point in points:
        group = next((group for group in groups if group[0].settings == point.settings), None)
        if group is None:
            groups.append([point])
        else:
            group.append(point)
    return groups


def _trees(points: Sequence[Candidate]) -> list[list[Candidate]]:
    """`points` in groups that share at least the first update, in the order of their first points."""
    order = {point.name: index for index, point in enumerate(points)}
    trees = [tree for group in by_settings(points) for tree in _forks(group, 0)]
    return sorted(trees, key=lambda tree: order[tree[0].name])


def _forks(branch: Sequence[Candidate], step: int) -> list[list[Candidate]]:
    """Points that are equal up to update `step`, in groups that share at least the next one."""
    forks: dict[Hashable, list[Candidate]] = {}
    for point in branch:
        schedule, update = point.schedule, step + 1
        next_update: Hashable
        if point.steps == step or isinstance(schedule, WSDAdaptive):
            next_update = point.name  # its run ends alone, or goes its way from the first
        else:
            next_update = schedule.lr(update), schedule.weight_decay(update), schedule.beta2(update)
        forks.setdefault(next_update, []).append(point)
    return list(forks.values())


def _shared_until(branch: Sequence[Candidate], start: int) -> int:
    """The last update that all of a branch share, which share at least `start` + 1."""
    first, *others = branch
    end = min(point.steps for point in branch)
    for other in others:
        difference = first_difference(first.schedule, other.schedule, start + 1, end)
        if difference is not None:
            end = difference.update - 1
    return end


def _unique(key: str, taken: Collection[str]) -> str:
    """`key`, numbered where other branches have the same span."""
    number, numbered = 1, key
    while numbered in taken:
        number += 1
        numbered = f"{key}-{number}"
    return numbered
