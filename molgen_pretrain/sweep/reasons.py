"""Why points of a sweep do not share more of their runs than they do, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from molgen_pretrain.schedules import WSDAdaptive, changed_fields, schedule_state
from molgen_pretrain.sweep.first_difference import Difference, first_difference
from molgen_pretrain.sweep.tree import Candidate, Edge, Forest, by_settings

_QUANTITIES = {"lr": "the learning rate", "weight_decay": "the weight decay", "beta2": "beta2"}
_MOST = 4  # settings that are named one by one


def why_apart(a: Candidate, b: Candidate) -> str:
    """What keeps two points from sharing more: settings, an update whose values differ, or the end of a run."""
    if keys := _differing_settings([a, b]):
        return f"{_enumerate(keys)} differs" if len(keys) == 1 else f"{_enumerate(keys)} differ"
    for point in (a, b):
        if isinstance(point.schedule, WSDAdaptive):
            return f"the loss decides when {point.name} decays and ends, so nothing can be told beforehand"
    end = min(a.steps, b.steps)
    difference = first_difference(a.schedule, b.schedule, 1, end)
    if difference is None:
        return f"they are equal up to update {end:,}, where {a.name if a.steps == end else b.name} ends"
    return f"{_in_words(difference)} ({_plans(a, b)})"


def why_trees_are_apart(forest: Forest) -> Iterator[str]:
    """Why the points make more than one tree; nothing where they make one."""
    candidates = {point.name: point for point in forest.candidates}
    first_points = [candidates[edge.owner] for edge in forest.children(None)]
    if len(first_points) < 2:
        return
    is_shared = any(not edge.is_leaf for edge in forest.edges)
    what = f"there are {len(first_points)} separate trees" if is_shared else "nothing can be shared"
    groups = by_settings(first_points)
    if len(groups) > 1:
        keys = _differing_settings([group[0] for group in groups])
        yield f"{what}: points differ in {_enumerate(keys)} from the first update"
    split = [group for group in groups if len(group) > 1]
    for a, b, *_ in split[:1]:
        lead = "nor do points that agree in those share a beginning" if len(groups) > 1 else what
        yield f"{lead}: {why_apart(a, b)}, for {a.name} and {b.name}"


def why_forked(forest: Forest, edge: Edge) -> str:
    """What parts the points of a shared edge: those whose runs end with it, or what differs in the next update."""
    children = forest.children(edge.key)
    ending = [child.owner for child in children if not child.steps]
    if ending:
        return f"{', '.join(ending)} {'ends' if len(ending) == 1 else 'end'} here"
    candidates = {point.name: point for point in forest.candidates}
    a, b = (candidates[child.owner] for child in children[:2])
    difference = first_difference(a.schedule, b.schedule, edge.end + 1, edge.end + 1)
    assert difference is not None  # that is what makes a fork
    return f"until {_QUANTITIES[difference.quantity]} differs"


def _differing_settings(points: Sequence[Candidate]) -> list[str]:
    keys = sorted({key for point in points for key in point.settings})
    missing = object()
    values = {key: [point.settings.get(key, missing) for point in points] for key in keys}
    return [key for key in keys if any(value != values[key][0] for value in values[key])]


def _in_words(difference: Difference) -> str:
    ours, theirs = difference.values
    a, b = f"{ours:g}" if ours is not None else "unset", f"{theirs:g}" if theirs is not None else "unset"
    if a == b:
        a, b = repr(ours), repr(theirs)
    return f"{_QUANTITIES[difference.quantity]} of update {difference.update:,} is {a} and {b}"


def _plans(a: Candidate, b: Candidate) -> str:
    """The scheduler settings that differ."""
    ours, theirs = schedule_state(a.schedule), schedule_state(b.schedule)
    if ours["schedule"] != theirs["schedule"]:
        return f"{ours['schedule']} and {theirs['schedule']}"
    return _enumerate([f"scheduler.{change}" for change in changed_fields(ours, theirs)])


def _enumerate(items: Sequence[str]) -> str:
    more = len(items) - _MOST
    return ", ".join(items[:_MOST]) + (f" and {more} more" if more > 0 else "")
