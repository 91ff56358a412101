"""Follows submitted jobs to their ends: the queue says whether one is over, what rank 0 left says how."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from molgen_pretrain.launchers.jobs import Outcome, State
from molgen_pretrain.launchers.slurm_queue import Queue, QueueSilent, Sighting
from molgen_pretrain.launchers.slurm_records import JobFolder, JobRecord

logger = logging.getLogger(__name__)

# For a file server to show what rank 0 wrote, and for a slurmctld that takes over to know all jobs.
_GRACE_SECONDS = 60.0


class JobWatch:
    """The jobs of a folder as they are now; `say` hears a line for each change."""

    def __init__(self, folder: JobFolder, queue: Queue, say: Callable[[str], None] = logger.info) -> None:
        self.ended: dict[str, Outcome] = {}
        self.seen: dict[str, Sighting] = {}  # by key, those that the queue knew at the last look
        self._folder = folder
        self._queue = queue
        self._say = say
        self._records: dict[str, JobRecord] = {}
        self._missed_since: dict[str, float] = {}
        self._is_silent = False

    def add(self, records: Iterable[JobRecord]) -> None:
        """Follow these too; each comes after those it waits for."""
        self._records.update({record.key: record for record in records})

    @property
    def running(self) -> list[JobRecord]:
        """Those that have not ended."""
        return [record for key, record in self._records.items() if key not in self.ended]

    def look(self) -> dict[str, Outcome]:
        """Look once; returns the jobs that have ended since the last time. A silent queue is asked again next time."""
        try:
            seen = self._queue.look([record.id for record in self.running])
        except QueueSilent as error:
            if not self._is_silent:
                logger.warning("no answer from the queue, which is asked again until there is one: %s", error)
            self._is_silent = True
            return {}
        self._is_silent = False
        before = set(self.ended)
        for record in self.running:
            self._note(record, seen.get(record.id))
        return {key: outcome for key, outcome in self.ended.items() if key not in before}

    def _note(self, record: JobRecord, sighting: Sighting | None) -> None:
        outcome = self._judge(record, sighting)
        if outcome is not None:
            self.ended[record.key] = outcome
            self._say(f"{record.key}: {outcome.state.value}{f' ({outcome.detail})' if outcome.detail else ''}")
        elif sighting is not None:
            if _differs(sighting, self.seen.get(record.key)):
                self._say(f"{record.key}: {self._queue.noun} {record.id} {sighting}")
            self.seen[record.key] = sighting

    def _judge(self, record: JobRecord, sighting: Sighting | None) -> Outcome | None:
        """None: it is not over, or nobody knows yet."""
        if sighting is not None and not (sighting.has_ended or sighting.is_blocked):
            self._missed_since.pop(record.key, None)
            return None
        told = self._folder.told(record.key)
        if sighting is None and told is not None:
            return told
        name = f"{self._queue.noun} {record.id}"
        if self._never_began(record, sighting):
            return Outcome(State.BLOCKED, f"{name}: a job before it did not finish")
        return self._give_up(record) if sighting is None else _ending(name, sighting, told)

    def _never_began(self, record: JobRecord, sighting: Sighting | None) -> bool:
        """Whether a job that has ended did so because one before it did not finish."""
        if sighting is not None and sighting.is_blocked:
            return True
        is_open = sighting is None or sighting.state == "CANCELLED"
        return is_open and any(self._did_not_finish(key) for key in record.after)

    def _did_not_finish(self, key: str) -> bool:
        return key in self.ended and self.ended[key].state is not State.FINISHED

    def _give_up(self, record: JobRecord) -> Outcome | None:
        """For a job that the queue does not know and that left no word: killed, and forgotten."""
        missed_seconds = time.monotonic() - self._missed_since.setdefault(record.key, time.monotonic())
        if missed_seconds < _GRACE_SECONDS:
            return None
        return Outcome(State.FAILED, f"{self._queue.noun} {record.id}: gone from the queue without a word")


def _ending(name: str, sighting: Sighting, told: Outcome | None) -> Outcome:
    """How a job ended that the queue shows as ended."""
    how = f"{name}: {sighting}"
    if told is not None and told.state is not State.FINISHED:
        return Outcome(told.state, f"{told.detail}; {how}" if told.detail else how)
    if sighting.state == "COMPLETED" or (told is not None and sighting.tells_nothing):
        return Outcome(State.FINISHED, name)
    if sighting.state == "CANCELLED":
        return Outcome(State.STOPPED, how)
    # Where rank 0 had finished, another rank failed after that.
    return Outcome(State.FAILED, how)


def _differs(now: Sighting, before: Sighting | None) -> bool:
    """Whether the change is worth a line: the reasons of pending jobs come and go."""
    if before is None:
        return True
    return (now.state, now.nodes, now.restarts) != (before.state, before.nodes, before.restarts)
