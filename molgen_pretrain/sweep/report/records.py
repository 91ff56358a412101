"""What a report is about: sweeps and loose runs with their points, shared parts, costs and failures."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from functools import cached_property

from molgen_pretrain.sweep.report.run import Cost, RunRecord


class Status(str, Enum):
    """How far a run is; the value is what people read."""

    FINISHED = "finished"
    RUNNING = "running"
    STOPPED = "stopped"
    FAILED = "failed"
    NOT_STARTED = "not started"


@dataclass(frozen=True)
class EdgeRecord:
    """A part of one or more points that is trained once: steps `start` to `end` (None: unknown), in `run`."""

    key: str
    start: int
    end: int | None
    points: tuple[str, ...]
    parent: str | None
    run: RunRecord

    @property
    def status(self) -> Status:
        said = self.run.status
        # A shared part is stopped on purpose, at its end.
        if said in ("finished", "stopped", "") and self.end is not None and self.run.reached >= self.end > 0:
            return Status.FINISHED
        if said in {status.value for status in Status}:
            return Status(said)
        return Status.STOPPED if self.run.exists else Status.NOT_STARTED

    @property
    def last(self) -> int:
        """The step that it ends with, as far as is known."""
        return max(self.start, self.run.reached) if self.end is None else self.end

    @property
    def reached(self) -> int:
        """The last step done, from `start` to `last`."""
        return max(self.start, min(self.run.reached, self.last))

    @cached_property
    def cost(self) -> Cost:
        return self.run.cost(self.start, self.end)

    @property
    def error(self) -> str:
        """Why it failed; empty where it did not."""
        if self.status is not Status.FAILED:
            return ""
        return self.run.error or f"no reason noted; see {self.run.directory.log(0).name}"


@dataclass(frozen=True)
class Point:
    """One run of a comparison."""

    name: str
    overrides: tuple[str, ...]
    edge: EdgeRecord  # the part that is this point's alone
    run: RunRecord  # what is known of it: its own run, or the shared part that it will go on from
    waits_for: EdgeRecord | None  # the shared part that it cannot start before
    steps: int | None  # planned

    @property
    def status(self) -> Status:
        return self.edge.status

    @property
    def detail(self) -> str:
        """What the status does not say, for people; often empty."""
        if self.waits_for is not None:
            return f"waits for {self.waits_for.key} ({self.waits_for.status.value})"
        if self.status is Status.RUNNING and (written := _last_written(self.run)):
            return f"last row at {written:%Y-%m-%d %H:%M:%S}"
        return ""


@dataclass(frozen=True)
class Sweep:
    """The points of one sweep, or all loose runs (which have no `command`)."""

    name: str
    command: tuple[str, ...]
    created: datetime | None
    planned_steps: int
    independent_steps: int
    points: tuple[Point, ...]
    edges: tuple[EdgeRecord, ...]

    @property
    def is_shared(self) -> bool:
        return any(edge.parent is not None for edge in self.edges)

    @property
    def trunk(self) -> tuple[EdgeRecord, ...]:
        """The parts that are no point's own."""
        own = {point.edge.key for point in self.points}
        return tuple(edge for edge in self.edges if edge.key not in own)


@dataclass(frozen=True)
class Report:
    """Everything that is shown, at one moment."""

    sweeps: tuple[Sweep, ...]
    made_at: datetime

    @property
    def points(self) -> tuple[Point, ...]:
        return tuple(point for sweep in self.sweeps for point in sweep.points)

    @property
    def edges(self) -> tuple[EdgeRecord, ...]:
        return tuple(edge for sweep in self.sweeps for edge in sweep.edges)

    @property
    def title(self) -> str:
        return ", ".join(sweep.name for sweep in self.sweeps)

    @property
    def is_shared(self) -> bool:
        return any(sweep.is_shared for sweep in self.sweeps)

    @property
    def planned_steps(self) -> int:
        return sum(sweep.planned_steps for sweep in self.sweeps)

    @property
    def independent_steps(self) -> int:
        return sum(sweep.independent_steps for sweep in self.sweeps)

    @property
    def saving(self) -> float:
        """Share of the independent runs' steps that need not be trained, 0 to 1."""
        return 1 - self.planned_steps / self.independent_steps if self.independent_steps else 0.0

    @property
    def spent(self) -> Cost:
        return sum((edge.cost for edge in self.edges), Cost())

    def count(self, status: Status) -> int:
        return sum(point.status is status for point in self.points)


def _last_written(run: RunRecord) -> datetime | None:
    try:
        return datetime.fromtimestamp(run.directory.metrics.stat().st_mtime)
    except (OSError, OverflowError):
        return None
