"""Signals become a wish that the training loop grants at the next step boundary."""

from __future__ import annotations

import logging
import os
import signal
import time
from types import FrameType, TracebackType
from typing import Any

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# A terminal's Ctrl-C reaches a rank twice under torchrun: from the terminal, and forwarded by its agent.
ECHO_SECONDS = 0.5


class StopRequest:
    """While entered, SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 ask for a stop instead of ending the process.

    `signal` is the number of the first one, 0 before. A second signal, not an echo of the first, exits at
    once with 128 + its number.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._asked_at = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.signal:
            self.signal, self._asked_at = number, now
        elif now - self._asked_at > ECHO_SECONDS:
            # No cleanup: the user asked twice, and whatever is committed on disk stays whole.
            os._exit(128 + number)
