"""metrics.jsonl: the record of a run, one row per line, cut back to the checkpoint on resume."""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path

from molgen_pretrain.metrics.logger import Sink
from molgen_pretrain.metrics.rows import Row, decode_row, encode_row

logger = logging.getLogger(__name__)


class JsonlSink(Sink):
    """Appends rows to a file that a kill at any moment leaves readable.

    `resume_step` is the step that training continues from: rows of later steps are dropped on opening,
    because they will be produced again (0 drops everything). None keeps all rows and appends.

    Each row is handed to the operating system before `log` returns. If that fails (disk full, quota, a file
    server away), the row stays in memory and goes out with the next one, in order.
    """

    name = "jsonl"
    essential = True

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        self.path = path
        self._resume_step = resume_step
        self._file: io.FileIO | None = None
        self._size_bytes = 0  # what is known to be whole rows; anything beyond is a failed write
        self._pending: list[bytes] = []

    def open(self) -> None:
        """Create the file, or mend and cut back the one that is there. Raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            trim_rows(self.path, self._resume_step)
            self._size_bytes = self.path.stat().st_size
        self._write_pending()

    def log(self, row: Row) -> None:
        """Append one row. Raises OSError if it could not be written now; it is then kept for later."""
        self._pending.append(encode_row(row))
        try:
            self._write_pending()
        except OSError as error:
            raise OSError(
                f"{self.path} is not writable ({error}); {len(self._pending)} rows wait in memory and are "
                "written with the next row"
            ) from error

    def rewind(self, step: int) -> None:
        """Drop the rows of later steps. Raises OSError."""
        self._write_pending()
        self._detach()
        trim_rows(self.path, step)
        self._size_bytes = self.path.stat().st_size

    def close(self, exit_code: int) -> None:
        """Write what waits. Raises OSError naming the number of rows that are lost."""
        try:
            self._write_pending()
        except OSError as error:
            raise OSError(f"{len(self._pending)} rows of {self.path} are lost ({error})") from error
        finally:
            self._detach()

    def _write_pending(self) -> None:
        data = b"".join(self._pending)
        try:
            if self._file is None:
                self._file = io.FileIO(self.path, "ab")
                # A failed attempt may have left part of a line behind.
                self._file.truncate(self._size_bytes)
            written = 0
            while written < len(data):
                written += self._file.write(data[written:]) or 0
        except OSError:
            # Reopened at the next row: the handle of a file server that went away stays broken.
            self._detach()
            raise
        self._size_bytes += len(data)
        self._pending.clear()

    def _detach(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def trim_rows(path: Path, resume_step: int | None) -> None:
    """Drop rows of steps after `resume_step` (None: no row) and lines that are not whole rows.

    The file is rewritten aside and replaced in one rename. What is dropped is reported in the log. A last
    line that lacks only its newline is kept.
    """
    aside = path.with_name(path.name + ".tmp")
    damaged: list[int] = []
    later = 0
    with path.open("rb") as source, aside.open("wb") as target:
        for number, line in enumerate(source, start=1):
            row = decode_row(line)
            if row is None:
                damaged.append(number)
            elif resume_step is not None and _step(row) > resume_step:
                later += 1
            else:
                target.write(line if line.endswith(b"\n") else line + b"\n")
        target.flush()
        os.fsync(target.fileno())
    os.replace(aside, path)
    if damaged:
        logger.warning("%s: dropped lines %s, cut off when the run was killed", path, ", ".join(map(str, damaged)))
    if later:
        logger.info("%s: dropped %d rows after step %s; they are produced again", path, later, resume_step)


def _step(row: Row) -> int:
    step = row.get("step")
    # A row without a step belongs to the run as a whole and is never cut off.
    return step if isinstance(step, int) else -1
