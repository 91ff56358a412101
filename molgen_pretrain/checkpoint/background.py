"""One job at a time beside the training."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """Runs a job in a thread; what it raised is kept until somebody waits for it.

    The thread does not hold up the end of the process: whoever wants the job finished waits for it.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Begin a job. The one before must have been waited for."""
        if self._thread is not None:
            raise RuntimeError("the job before has not been waited for")
        self._thread = threading.Thread(target=self._run, args=(job,), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when no job is under way; raise what the last one raised, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - raised by `wait`
            self._failure = error
