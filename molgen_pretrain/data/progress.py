"""Log lines for people who wait for something that is done once: how far, how fast, how long still."""

from __future__ import annotations

import logging
import threading
import time

logger = logging.getLogger(__name__)

_INTERVAL_SECONDS = 5.0


class Progress:
    """Counts bytes of `total_bytes` (any thread may add) and logs a line every few seconds.

    `lines` and `tokens` are shown where they are counted at all.
    """

    def __init__(self, task: str, total_bytes: int) -> None:
        self._task = task
        self._total_bytes = total_bytes
        self._bytes = self._lines = self._tokens = 0
        self._lock = threading.Lock()
        self._start = self._last = time.monotonic()

    def add(self, size: int, lines: int = 0, tokens: int = 0) -> None:
        with self._lock:
            self._bytes += size
            self._lines += lines
            self._tokens += tokens
            now = time.monotonic()
            if now - self._last < _INTERVAL_SECONDS:
                return
            self._last = now
            logger.info("%s", self._describe(now - self._start))

    def finish(self) -> None:
        seconds = time.monotonic() - self._start
        logger.info(
            "%s: done, %.1f MB%s in %.1f s",
            self._task,
            self._bytes / 1e6,
            f", {self._lines:,} lines, {self._tokens / 1e6:,.1f} M tokens" if self._lines else "",
            seconds,
        )

    def _describe(self, elapsed: float) -> str:
        text = f"{self._task}: {100 * self._bytes / self._total_bytes:.0f} %"
        if self._lines:
            text += f", {self._lines:,} lines, {self._lines / elapsed:,.0f} lines/s"
            text += f", {self._tokens / elapsed / 1e6:.2f} M tokens/s"
        else:
            text += f", {self._bytes / elapsed / 1e6:,.1f} MB/s"
        return f"{text}, about {elapsed * (self._total_bytes / self._bytes - 1):.0f} s left"
