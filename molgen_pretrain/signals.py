"""Signals: while a run trains, a wish that the loop grants at the next step boundary; before and after, the end."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# A terminal's Ctrl-C reaches a rank twice under torchrun: from the terminal, and forwarded by its agent.
ECHO_SECONDS = 0.5
_LEAVE_SECONDS = 5.0  # for a main thread to come out of what it does


class Interrupted(KeyboardInterrupt):
    """A signal ends the process in good order, with exit code 128 + `number`."""

    def __init__(self, number: int, then: str = "no step was under way") -> None:
        self.number = number
        super().__init__(f"ended by signal {number}, {then}")


class SignalListener:
    """While entered, SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 do what `_hear_first` says instead of ending the process.

    `signal` is the number of the first one, 0 before. A second signal, not an echo of the first, exits at
    once with 128 + its number, also where the main thread is blocked in a collective or a CUDA call: Python
    runs handlers only between two of the main thread's own instructions, so a thread of its own reads the
    numbers that the interpreter's C handler writes to a socket. May be entered inside another one.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._asked_at = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Any:
        self._ear, self._bell = socket.socketpair()
        self._bell.setblocking(False)
        self._previous_bell = signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
        self._listener = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._listener.start()
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        _entered.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _entered.discard(self)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_bell)
        self._bell.shutdown(socket.SHUT_RDWR)  # an end for the listener also where a fork holds the socket
        self._listener.join()
        self._bell.close()
        self._ear.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """In the main thread, if it is not blocked."""

    def _hear_first(self, number: int) -> None:
        """In the listener's thread."""

    def _listen(self) -> None:
        while numbers := self._ear.recv(64):
            for number in numbers:
                if number in SIGNALS:  # whatever else has a handler is written too
                    self._hear(number)

    def _hear(self, number: int) -> None:
        now = time.monotonic()
        if not self.signal:
            self.signal, self._asked_at = number, now
            self._hear_first(number)
        elif now - self._asked_at > ECHO_SECONDS:
            # No cleanup: the user asked twice, and whatever is committed on disk stays whole.
            os._exit(128 + number)


class StopRequest(SignalListener):
    """Signals are a wish: `signal` says which, for the loop to look at between steps."""

    def __init__(self, *, announces: bool = False, is_lost: Callable[[], bool] = lambda: False) -> None:
        """`announces`: say on stderr that the wish was heard, since a step may take a while.

        `is_lost`: whether the run is ending already, where that would be no true word.
        """
        super().__init__()
        self._announces = announces
        self._is_lost = is_lost

    def _hear_first(self, number: int) -> None:
        if self._announces and not self._is_lost():
            # Not through a stream, whose lock the main thread may hold.
            os.write(2, f"signal {number}: stopping after this step; once more to exit at once\n".encode())


class EndAtOnce(SignalListener):
    """A signal raises Interrupted in the main thread, once; one that does not come out in 5 s is not waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._is_raised = False
        self._deadline: threading.Timer | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._deadline is not None:
            self._deadline.cancel()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._is_raised:
            self._is_raised = True
            raise Interrupted(number)

    def _hear_first(self, number: int) -> None:
        self._deadline = threading.Timer(_LEAVE_SECONDS, os._exit, [128 + number])
        self._deadline.daemon = True
        self._deadline.start()


# The socket is shared with forked processes, whose signals are not this process's.
_entered: set[SignalListener] = set()


def _deafen_child() -> None:
    if _entered:
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_deafen_child)
