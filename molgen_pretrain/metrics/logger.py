"""One place to log a row, many places where it lands; none of them can end a run."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from molgen_pretrain.metrics.rows import Row, plain_row

logger = logging.getLogger(__name__)


class Sink(ABC):
    """A destination of rows. Construction is cheap and cannot fail; `open` does what can."""

    name: ClassVar[str]
    # An essential sink is the record of the run: it is told of every row, however often it failed before.
    essential: ClassVar[bool] = False

    def open(self) -> None:  # noqa: B027 (a sink without preparations is fine)
        """Acquire files, processes and connections."""

    @abstractmethod
    def log(self, row: Row) -> None:
        """Take one row; any exception counts as the sink's failure."""

    def rewind(self, step: int) -> None:  # noqa: B027 (a destination that cannot forget shows steps twice)
        """Training goes back to this step: rows of later ones are void and come again."""

    def close(self, exit_code: int) -> None:  # noqa: B027
        """Write what is left and release everything; `exit_code` 0 means that the run succeeded."""


class MetricsLogger:
    """Hands each row to every sink and keeps the run going when one fails.

    A sink that fails is named once with the reason and receives no more rows. An essential sink (the JSONL
    file) stays in use and is warned about at each failure. Only an essential sink that cannot be opened
    raises: then the run has no record to write, and nothing has been trained yet.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks: list[Sink] = []
        for sink in sinks:
            error = _attempt(sink.open)
            if error is None:
                self._sinks.append(sink)
            elif sink.essential:
                raise error
            else:
                _warn_disabled(sink, error)

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the sinks that still receive rows."""
        return tuple(sink.name for sink in self._sinks)

    def log(self, row: Mapping[str, Any]) -> None:
        """Log a row; it needs `kind` and `step`. Raises TypeError for a value no sink could hold."""
        plain = plain_row(row)
        for sink in tuple(self._sinks):
            error = _attempt(partial(sink.log, plain))
            if error is None:
                continue
            if sink.essential:
                logger.warning("metrics: %s: %s", sink.name, _reason(error))
            else:
                _warn_disabled(sink, error)
                self._sinks.remove(sink)
                _close(sink, exit_code=1)

    def rewind(self, step: int) -> None:
        """Tell every sink that training goes back to `step`; one that fails is warned about and kept."""
        for sink in self._sinks:
            error = _attempt(partial(sink.rewind, step))
            if error is not None:
                logger.warning("metrics: %s keeps rows of steps after %d: %s", sink.name, step, _reason(error))

    def close(self, exit_code: int = 0) -> None:
        """Close every sink, also those after a failing one. Further rows go nowhere."""
        for sink in self._sinks:
            _close(sink, exit_code)
        self._sinks = []


def _attempt(action: Callable[[], None]) -> Exception | None:
    try:
        action()
    except Exception as error:  # noqa: BLE001 (third-party libraries fail in any way they like)
        return error
    return None


def _close(sink: Sink, exit_code: int) -> None:
    error = _attempt(partial(sink.close, exit_code))
    if error is not None:
        logger.warning("metrics: closing %s failed: %s", sink.name, _reason(error))


def _warn_disabled(sink: Sink, error: Exception) -> None:
    logger.warning("metrics: %s is off for the rest of this run: %s", sink.name, _reason(error))


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
