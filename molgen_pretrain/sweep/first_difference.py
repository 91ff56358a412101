"""The first update in which two schedules differ: exact, and fast where their curves are long and simple."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import NamedTuple

from molgen_pretrain.schedules import InverseSqrt, Megatron, Phase, Schedule
from molgen_pretrain.schedules.base import Piece

# Fields through which a learning rate depends on nothing but where the pieces of the plan lie. A field that is not
# named here counts as one that changes the curve: then every update is looked at.
_PLACEMENT = frozenset(
    {
        "total_steps", "start_weight_decay", "end_weight_decay", "weight_decay_incr_style", "decay_beta2",
        "warmup_frac", "stable_steps", "decay_steps", "decay_frac", "decay_frac_of", "checkpoints",
        "checkpoints_frac", "cycle_length", "cycles", "cycle_mult", "lr_decay_iters", "lr_wsd_decay_iters",
    }
)  # fmt: skip


class Difference(NamedTuple):
    """Update `update` is the first that differs; `values` are what each schedule gives it."""

    update: int
    quantity: str  # "lr", "weight_decay" or "beta2"
    values: tuple[float | None, float | None]


def first_difference(a: Schedule, b: Schedule, first: int, last: int) -> Difference | None:
    """The first of updates `first` to `last` that the two give another lr, weight decay or beta2; None: none.

    Compares with ==. A stretch in which both plans stay in one piece is decided by its first update where both
    are constant, and not looked at where both follow the same formula.
    """
    if a == b:
        return None
    while first <= last:
        pieces = a.piece(first), b.piece(first)
        end = min([last, *(piece.last for piece in pieces if piece.last is not None)])
        if (found := _in_stretch(a, b, pieces, first, end)) is not None:
            return found
        first = end + 1
    return None


def _in_stretch(a: Schedule, b: Schedule, pieces: tuple[Piece, Piece], first: int, last: int) -> Difference | None:
    """The same for updates that lie in one piece of each plan."""
    found: Difference | None = None
    for quantity, end in _to_look_at(a, b, pieces, first, last):
        of_a, of_b = getattr(a, quantity), getattr(b, quantity)
        end = end if found is None else min(end, found.update - 1)
        update = next((n for n in range(first, end + 1) if of_a(n) != of_b(n)), None)
        if update is not None:
            found = Difference(update, quantity, (of_a(update), of_b(update)))
    return found


def _to_look_at(
    a: Schedule, b: Schedule, pieces: tuple[Piece, Piece], first: int, last: int
) -> Iterator[tuple[str, int]]:
    """Each quantity that may differ, and the update up to which it has to be compared."""
    if not _same_rates(a, b, pieces):
        is_constant = all(piece.phase is Phase.STABLE or first >= piece.one for piece in pieces)
        yield "lr", first if is_constant else last
    if _weight_decay_terms(a) != _weight_decay_terms(b):
        is_constant = _keeps_weight_decay(a) and _keeps_weight_decay(b)
        yield "weight_decay", first if is_constant else last
    yield "beta2", first  # goes by the phase


def _same_rates(a: Schedule, b: Schedule, pieces: tuple[Piece, Piece]) -> bool:
    """Whether the learning rates come from the same computation; False is no proof that they do not."""
    if type(a) is not type(b):
        return False
    ours, theirs = pieces
    same_place = (ours.phase, ours.first, ours.zero) == (theirs.phase, theirs.first, theirs.zero)
    same_place &= ours.one == theirs.one or (ours.phase is Phase.DECAY and _falls_towards_no_end(a))
    names = [field.name for field in fields(a) if field.name not in _PLACEMENT]
    return same_place and all(getattr(a, name) == getattr(b, name) for name in names)


def _falls_towards_no_end(schedule: Schedule) -> bool:
    """Whether it makes no difference before the end of the decay where that is: an inverse square root."""
    if isinstance(schedule, Megatron):
        return schedule.lr_decay_style == "inverse-square-root"
    return isinstance(schedule, InverseSqrt)


def _weight_decay_terms(schedule: Schedule) -> tuple[object, ...]:
    """All that the weight decay of an update depends on."""
    start = schedule.start_weight_decay
    if _keeps_weight_decay(schedule):
        return (start,)
    return start, schedule.end_weight_decay, schedule.weight_decay_incr_style, schedule.total_steps


def _keeps_weight_decay(schedule: Schedule) -> bool:
    return schedule.weight_decay_incr_style == "constant" or schedule.end_weight_decay == schedule.start_weight_decay
