"""Other names for constructor arguments, so that what users know from elsewhere works."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from molgen_pretrain.schedules.base import Schedule, ScheduleError

S = TypeVar("S", bound=Schedule)


def also_spelled(**spellings: str) -> Callable[[type[S]], type[S]]:
    """Let a schedule's constructor take `other=name` spellings of its fields.

    Only the constructor knows them: fields, stored states and messages have one name for one value. Raises
    ScheduleError where a value is given under both names.
    """

    def decorate(cls: type[S]) -> type[S]:
        construct = cls.__init__

        @functools.wraps(construct)
        def init(self: S, **values: Any) -> None:
            for other in spellings.keys() & values.keys():
                name, value = spellings[other], values.pop(other)
                if values.get(name) not in (None, value):
                    raise ScheduleError(
                        cls.__name__, [f"{other}={value}: another spelling of {name}={values[name]}; give one"]
                    )
                values[name] = value
            construct(self, **values)

        cls.__init__ = init  # type: ignore[method-assign, assignment]
        return cls

    return decorate
