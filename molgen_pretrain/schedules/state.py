"""A schedule as JSON: what a checkpoint stores, and how a resume compares it with the config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, fields, replace
from typing import Any

from molgen_pretrain.errors import UserError
from molgen_pretrain.schedules.anneal import Cosine, InverseSqrt, Linear
from molgen_pretrain.schedules.base import Schedule
from molgen_pretrain.schedules.constant import Constant
from molgen_pretrain.schedules.megatron import Megatron
from molgen_pretrain.schedules.sgdr import SGDR
from molgen_pretrain.schedules.wsd import WSD
from molgen_pretrain.schedules.wsd_adaptive import WSDAdaptive
from molgen_pretrain.schedules.wsds import WSDS

_CLASSES: dict[str, type[Schedule]] = {
    cls.__name__: cls for cls in (Constant, Cosine, InverseSqrt, Linear, Megatron, SGDR, WSD, WSDAdaptive, WSDS)
}


def schedule_state(schedule: Schedule) -> dict[str, Any]:
    """Class name, and every parameter that makes the curve, JSON-serialisable."""
    values = {field.name: getattr(schedule, field.name) for field in _stored_fields(type(schedule))}
    return {
        "schedule": type(schedule).__name__,
        **{name: list(value) if isinstance(value, tuple) else value for name, value in values.items()},
    }


def schedule_from_state(state: dict[str, Any]) -> Schedule:
    """The schedule that `schedule_state` described.

    Raises UserError for a class or a parameter that this version does not know.
    """
    name = state["schedule"]
    if name not in _CLASSES:
        raise UserError(f"unknown schedule {name!r} in the checkpoint; this version knows {', '.join(_CLASSES)}")
    values = {key: value for key, value in state.items() if key != "schedule"}
    legal = {field.name for field in _stored_fields(_CLASSES[name])}
    if unknown := sorted(values.keys() - legal):
        raise UserError(
            f"schedule {name} in the checkpoint has parameters that this version does not know: {', '.join(unknown)}; "
            "resume with the version that wrote it"
        )
    return _CLASSES[name](**values)


def differences(stored: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Fields that differ between two schedule states, as `field: stored -> current`.

    A decision that was made while training (`decay_start` of WSDAdaptive) and that `current` leaves open is no
    difference: `carry_decisions` takes it over.
    """
    left_open = {name for name in _decisions(current["schedule"]) if current.get(name) is None}
    return changed_fields(
        {key: value for key, value in stored.items() if key not in left_open},
        {key: value for key, value in current.items() if key not in left_open},
    )


def changed_fields(stored: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Keys whose values differ, as `key: stored -> current`; a missing key counts as None."""
    return [
        f"{key}: {stored.get(key)} -> {current.get(key)}"
        for key in sorted(stored.keys() | current.keys())
        if stored.get(key) != current.get(key)
    ]


def carry_decisions(stored: dict[str, Any], schedule: Schedule) -> Schedule:
    """`schedule` with the decisions of a stored state of its class that it leaves open itself.

    Raises ScheduleError where such a decision is impossible in the new plan.
    """
    name = type(schedule).__name__
    if stored["schedule"] != name:
        return schedule
    open_names = [n for n in _decisions(name) if getattr(schedule, n) is None]
    made = {n: stored[n] for n in open_names if stored.get(n) is not None}
    return replace(schedule, **made) if made else schedule


def _stored_fields(cls: type[Schedule]) -> list[Field[Any]]:
    return [field for field in fields(cls) if field.metadata.get("stored", True)]


def _decisions(name: str) -> list[str]:
    return [field.name for field in fields(_CLASSES[name]) if field.metadata.get("decision", False)]
