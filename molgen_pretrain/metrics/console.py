"""A line per row in the run's log and, on a terminal, a progress bar below the lines."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from molgen_pretrain.metrics.formats import format_count, format_duration, format_percent
from molgen_pretrain.metrics.logger import Sink
from molgen_pretrain.metrics.rows import Row

logger = logging.getLogger(__name__)

_Field: TypeAlias = tuple[str, Callable[[float], str]]

# Fixed widths keep the columns of successive lines below each other.
_TRAIN_FIELDS: tuple[_Field, ...] = (
    ("loss", lambda value: f"loss {value:7.4f}"),
    ("lr", lambda value: f"lr {value:.2e}"),
    ("phase", lambda value: f"{value:<6}"),
    ("grad_norm", lambda value: f"grad {value:6.3f}"),
    ("tokens_per_second", lambda value: f"{format_count(value):>5} tok/s"),
    ("mfu", lambda value: f"mfu {format_percent(value):>5}"),
    ("data_wait_frac", lambda value: f"wait {format_percent(value):>5}"),
    ("memory_gib", lambda value: f"mem {value:.2f} GiB"),
)
_VALIDATION_FIELDS: tuple[_Field, ...] = (
    ("loss", lambda value: f"validation loss {value:.4f}"),
    ("perplexity", lambda value: f"perplexity {value:.3f}"),
    ("tokens", lambda value: f"{format_count(value)} tokens"),
    ("seconds", lambda value: f"{value:.1f} s"),
)


def format_row(row: Row, total_steps: int, eta_seconds: float | None = None) -> str:
    """The row as one line; values that it does not have are left out."""
    fields = _VALIDATION_FIELDS if row["kind"] == "validation" else _TRAIN_FIELDS
    step = f"step {row['step']:>{len(str(total_steps))}}/{total_steps}"
    parts = [step, *(show(row[key]) for key, show in fields if row.get(key) is not None)]  # type: ignore[arg-type]
    if eta_seconds is not None:
        parts.append(f"ETA {format_duration(eta_seconds)}")
    return "  ".join(parts)


class ConsoleSink(Sink):
    """Logs a line per row; with a `console` on a terminal it also draws a bar over `total_steps`.

    The bar is redrawn with each row and log line instead of by a thread: a thread that holds the console's
    lock while a DataLoader worker is forked would leave that worker hanging at its first message.
    """

    name = "console"

    def __init__(self, total_steps: int, console: Console | None = None) -> None:
        self._total_steps = total_steps
        self._console = console if console is not None and wants_progress(console) else None
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._step_seconds: float | None = None

    def log(self, row: Row) -> None:
        """Write the row's line to the log of this module, and move the bar."""
        if row["kind"] == "validation":
            logger.info(format_row(row, self._total_steps))
            return
        eta_seconds = self._eta_seconds(row)
        logger.info(format_row(row, self._total_steps, eta_seconds))
        if self._console is not None:
            self._draw(self._console, row, eta_seconds)

    def close(self, exit_code: int) -> None:
        """Take the bar away; the lines stay."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _eta_seconds(self, row: Row) -> float | None:
        seconds = row.get("step_seconds")
        if isinstance(seconds, float):
            # Half new, half old: steady against one slow interval, quick to forget the first steps.
            previous = self._step_seconds
            self._step_seconds = seconds if previous is None else 0.5 * seconds + 0.5 * previous
        step = row["step"]
        if self._step_seconds is None or not isinstance(step, int):
            return None
        return self._step_seconds * max(self._total_steps - step, 0)

    def _draw(self, console: Console, row: Row, eta_seconds: float | None) -> None:
        if self._progress is None:
            self._progress = Progress(
                TextColumn("training"),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:>5.1f}%  {task.completed:.0f}/{task.total:.0f}  {task.fields[eta]}"),
                console=console,
                auto_refresh=False,
                transient=True,
                expand=True,
            )
            self._task = self._progress.add_task("", total=self._total_steps, eta="")
            self._progress.start()
        eta = "" if eta_seconds is None else f"ETA {format_duration(eta_seconds)}"
        self._progress.update(self._task, completed=row["step"], eta=eta, refresh=True)  # type: ignore[arg-type]


def wants_progress(console: Console) -> bool:
    """Whether a bar makes sense: a real terminal that can move its cursor, and no CI job's log."""
    return console.file.isatty() and not console.is_dumb_terminal and not os.environ.get("CI")


class ConsoleHandler(logging.Handler):
    """Log records on a rich console, so that they appear above a progress bar instead of through it.

    Lines are never wrapped or marked up: what a user pipes into a file is what was logged.
    """

    _STYLES = ((logging.ERROR, "bold red"), (logging.WARNING, "yellow"))

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record; a failure is reported the way logging reports its own."""
        try:
            style = next((style for level, style in self._STYLES if record.levelno >= level), "")
            self._console.print(Text(self.format(record), style=style), soft_wrap=True, highlight=False)
        except Exception:  # noqa: BLE001 (logging's contract: a handler never raises)
            self.handleError(record)


def build_console_handler(console: Console) -> ConsoleHandler:
    """The handler for the terminal: time and message, with the level named from WARNING up."""
    handler = ConsoleHandler(console)
    handler.setFormatter(_TerminalFormatter(datefmt="%H:%M:%S"))
    return handler


class _TerminalFormatter(logging.Formatter):
    """`12:34:56 message`, or `12:34:56 WARNING message`."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname} " if record.levelno >= logging.WARNING else ""
        return f"{self.formatTime(record, self.datefmt)} {level}{record.message}"
