"""How the tool for jobs writes its table, and the ends of logs that it follows."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from molgen_pretrain.launchers.jobs import State
from molgen_pretrain.launchers.slurm_records import JobRecord
from molgen_pretrain.launchers.slurm_watch import JobWatch
from molgen_pretrain.metrics.rows import decode_row
from molgen_pretrain.run_directory import RunDirectory
from molgen_pretrain.sweep.directory import SweepDirectory

_TAIL_BYTES = 65_536
_FIRST_LINES = 10  # of a log that is there already
_STYLES = {State.FINISHED: "green", State.FAILED: "bold red", State.STOPPED: "yellow", State.BLOCKED: "yellow"}


def jobs_report(sweep: SweepDirectory, records: Iterable[JobRecord], watch: JobWatch) -> Iterator[RenderableType]:
    """A line for each job as `watch` has seen it, then why jobs did not finish."""
    ends = {edge["key"]: edge["end"] for edge in sweep.read_manifest().get("edges", [])}
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("key", "job", "state", "step", "run directory"):
        table.add_column(column, justify="right" if column == "step" else "left", no_wrap=True)
    reasons = []
    for record in records:
        step, end = last_step(RunDirectory(Path(record.run))), ends.get(record.key)
        steps = f"{step:,}" + ("" if end is None else f" of {end:,}")
        table.add_row(record.key, record.id, _state(record, watch), steps, record.run)
        outcome = watch.ended.get(record.key)
        if outcome is not None and outcome.state is not State.FINISHED:
            reasons.append(f"{record.key}: {outcome.detail}")
    yield table
    yield from map(Text, reasons)


def _state(record: JobRecord, watch: JobWatch) -> Text:
    if (outcome := watch.ended.get(record.key)) is not None:
        return Text(outcome.state.value, style=_STYLES.get(outcome.state, ""))
    return Text(str(watch.seen.get(record.key, "unknown")))


def last_step(run: RunDirectory) -> int:
    """The newest step in metrics.jsonl, which may be cut off by a kill or being written; 0 where there is none."""
    try:
        with run.metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, io.SEEK_END) - _TAIL_BYTES))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return 0
    for row in map(decode_row, reversed(lines)):
        if row is not None and isinstance(step := row.get("step"), int):
            return step
    return 0


class LogTail:
    """The lines of a log as they come, each behind `prefix`; of what is there already only the last few."""

    def __init__(self, path: Path, prefix: str) -> None:
        self._path = path
        self._prefix = prefix
        self._offset_bytes = 0
        self._rest = b""  # of a line that is not whole yet

    def new_lines(self) -> list[str]:
        """What has come since the last call."""
        is_first = self._offset_bytes == 0
        try:
            with self._path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(0, size - _TAIL_BYTES) if is_first else self._offset_bytes)
                content = self._rest + file.read()
                self._offset_bytes = file.tell()
        except FileNotFoundError:
            return []
        *lines, self._rest = content.split(b"\n")
        lines = lines[-_FIRST_LINES:] if is_first else lines
        return [self._prefix + line.decode(errors="replace") for line in lines]
