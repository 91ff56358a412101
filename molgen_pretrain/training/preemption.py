"""Signals become a wish that the training loop grants at the next step boundary."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# A terminal's Ctrl-C reaches a rank twice under torchrun: from the terminal, and forwarded by its agent.
ECHO_SECONDS = 0.5


class StopRequest:
    """While entered, SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 ask for a stop instead of ending the process.

    `signal` is the number of the first one, 0 before. A second signal, not an echo of the first, exits at
    once with 128 + its number.
    """

    def __init__(self, *, announces: bool = False) -> None:
        """`announces`: say on stderr that the wish was heard, since a step may take a while."""
        self.signal = 0
        self._announces = announces
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
            if self._announces:
                # os.write, since a handler may interrupt a print that holds the stream's lock.
                os.write(2, f"signal {number}: saving after this step; once more to exit at once\n".encode())
        elif now - self._asked_at > ECHO_SECONDS:
            # No cleanup: the user asked twice, and whatever is committed on disk stays whole.
            os._exit(128 + number)
