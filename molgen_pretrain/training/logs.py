"""One logger tree: the terminal for rank 0, runtime.log for every rank that has something to say."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import sys
from pathlib import Path

from rich.console import Console

from molgen_pretrain.metrics.console import build_console_handler

_ROOT = "molgen_pretrain"
_BUFFERED_RECORDS = 100_000


class RunLogs:
    """Handlers of the package's logger for the time of one run.

    Until `open_file` is called the records are held in memory: a run directory is made only after every check
    has passed, and the log in it starts at the beginning all the same.
    """

    def __init__(self, rank: int, console: Console) -> None:
        self._logger = logging.getLogger(_ROOT)
        self._rank = rank
        self._buffer = logging.handlers.MemoryHandler(
            _BUFFERED_RECORDS, flushLevel=logging.CRITICAL + 1, flushOnClose=False
        )
        self._console = build_console_handler(console)
        self._handlers: list[logging.Handler] = [self._buffer]
        if rank == 0:
            self._handlers.append(self._console)
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False
        for handler in self._handlers:
            self._logger.addHandler(handler)

    def open_file(self, path: Path) -> None:
        """Write to `path` from now on, what was said before included.

        Ranks above 0 write only what rank 0 does not say as well, to a file that does not exist until then.
        """
        handler = _LogFile(path, delay=True)
        rank = f" [rank {self._rank}]" if self._rank else ""
        handler.setFormatter(logging.Formatter(f"%(asctime)s{rank} %(levelname)s %(name)s: %(message)s"))
        handler.addFilter(lambda record: self._rank == 0 or _is_of_one_rank(record))
        for record in self._buffer.buffer:
            handler.handle(record)
        self._logger.removeHandler(self._buffer)
        self._handlers.remove(self._buffer)
        self._handlers.append(handler)
        self._logger.addHandler(handler)

    def leave_console(self) -> None:
        """From now on only the file is written."""
        self._logger.removeHandler(self._console)

    def close(self) -> None:
        for handler in self._handlers:
            self._logger.removeHandler(handler)
            handler.close()


class _LogFile(logging.FileHandler):
    """Tells of trouble with its storage once, not with a traceback for every record."""

    _is_told = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._is_told:
            self._is_told = True
            print(f"{self.baseFilename} may lack lines from now on: {error}", file=sys.stderr, flush=True)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # told already
            super().close()


def _is_of_one_rank(record: logging.LogRecord) -> bool:
    """Errors, and warnings from below: this room's own warnings (plans, settings) are the same on every rank."""
    shared_by_all = record.name.startswith(f"{_ROOT}.training.")
    return record.levelno >= (logging.ERROR if shared_by_all else logging.WARNING)
