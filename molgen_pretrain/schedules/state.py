"""A schedule as JSON: what a checkpoint stores, and how a resume compares it with the config."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from molgen_pretrain.schedules.base import Schedule
from molgen_pretrain.schedules.constant import Constant
from molgen_pretrain.schedules.wsds import WSDS

_CLASSES: dict[str, type[Schedule]] = {cls.__name__: cls for cls in (Constant, WSDS)}


def schedule_state(schedule: Schedule) -> dict[str, Any]:
    """Class name and every parameter, JSON-serialisable."""
    fields = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(schedule).items()}
    return {"schedule": type(schedule).__name__, **fields}


def schedule_from_state(state: dict[str, Any]) -> Schedule:
    """The schedule that `schedule_state` described. Raises ValueError for an unknown class name."""
    name = state["schedule"]
    if name not in _CLASSES:
        raise ValueError(f"unknown schedule {name!r}; this version knows {', '.join(_CLASSES)}")
    return _CLASSES[name](**{k: v for k, v in state.items() if k != "schedule"})


def differences(stored: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Fields that differ between two schedule states, as `field: stored -> current`."""
    return [
        f"{key}: {stored.get(key)} -> {current.get(key)}"
        for key in sorted(stored.keys() | current.keys())
        if stored.get(key) != current.get(key)
    ]
