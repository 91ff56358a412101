"""Submission through submitit: a script for each array, and a record of every job as soon as it has a number."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from molgen_pretrain.errors import UserError
from molgen_pretrain.launchers.gpus import DEVICES, visible_gpus
from molgen_pretrain.launchers.jobs import Entry, Job
from molgen_pretrain.launchers.rank import RankTask
from molgen_pretrain.launchers.slurm_queue import LocalQueue, Queue, SlurmQueue
from molgen_pretrain.launchers.slurm_records import JobFolder, JobRecord
from molgen_pretrain.launchers.slurm_settings import SlurmSettings, wrong

if TYPE_CHECKING:
    from submitit import Executor

logger = logging.getLogger(__name__)

# The counting of requeues is ours: submitit takes any late signal for a time limit.
_NO_LIMIT = 1_000_000


class Submission(ABC):
    """Submits jobs of one folder to one kind of queue."""

    kind: str
    unattended: bool  # whether jobs go on, and start, without the launcher
    queue: Queue

    def __init__(self, settings: SlurmSettings, folder: Path, entry: Entry) -> None:
        self.settings = settings
        self.folder = JobFolder(folder.absolute())
        self._entry = entry

    @abstractmethod
    def start(
        self, waiting: Sequence[Job], submitted: Mapping[str, JobRecord], running: Collection[str]
    ) -> Iterator[list[JobRecord]]:
        """Submit those of `waiting` that can be, in whose order each comes after those it waits for.

        Yields what has just been submitted. `submitted`: the jobs that were before, by key; `running`: keys of
        those that have not ended. Raises UserError where the queue refuses.
        """

    def find_live(self, jobs: Sequence[Job]) -> list[JobRecord]:
        """Those that an earlier launcher has submitted and that have not ended. Raises QueueSilent."""
        kind, records = self.folder.read()
        found = [records[job.key] for job in jobs if job.key in records and kind == self.kind]
        seen = self.queue.look([record.id for record in found])
        return [r for r in found if r.id in seen and not (seen[r.id].has_ended or seen[r.id].is_blocked)]

    def _submit(self, jobs: Sequence[Job], executor: Executor) -> list[JobRecord]:
        for job in jobs:
            self.folder.outcome(job.key).unlink(missing_ok=True)
        with _outside_of_jobs(), executor.batch():
            handles = [executor.submit(self._task(job)) for job in jobs]
        now = datetime.now().isoformat(timespec="seconds")
        records = [self._record(job, handle, now) for job, handle in zip(jobs, handles, strict=True)]
        self.folder.add(self.kind, records)
        return records

    def _task(self, job: Job) -> RankTask:
        return RankTask(
            entry=self._entry,
            payload=job.payload,
            max_requeues=self.settings.max_requeues,
            outcome_file=self.folder.outcome(job.key),
        )

    def _record(self, job: Job, handle: Any, now: str) -> JobRecord:
        script = handle.paths.submission_file
        return JobRecord(
            key=job.key,
            id=handle.job_id,
            run=str(job.folder),
            script=script.name if script.exists() else None,
            logs=tuple(handle.task(rank).paths.stdout.name for rank in range(self.settings.ranks)),
            after=job.after,
            submitted_at=now,
        )


class SlurmSubmission(Submission):
    """sbatch: all jobs at once, Slurm starts each when those before it have finished."""

    kind = "slurm"
    unattended = True

    def __init__(self, settings: SlurmSettings, folder: Path, entry: Entry) -> None:
        super().__init__(settings, folder, entry)
        self.queue: SlurmQueue = SlurmQueue()
        missing = [name for name in ("sbatch", "srun", "squeue") if shutil.which(name) is None]
        if missing:
            raise UserError(
                f"hydra/launcher=slurm: {', '.join(missing)} not found: this is no login node of a Slurm cluster; "
                "run the command on one, or use hydra/launcher=basic or slurm_local"
            )

    def find_live(self, jobs: Sequence[Job]) -> list[JobRecord]:
        self._cancel_unrecorded()
        return super().find_live(jobs)

    def start(
        self, waiting: Sequence[Job], submitted: Mapping[str, JobRecord], running: Collection[str]
    ) -> Iterator[list[JobRecord]]:
        known = dict(submitted)
        groups: dict[frozenset[str], list[Job]] = {}
        for job in waiting:
            groups.setdefault(frozenset(job.after), []).append(job)
        for after, jobs in groups.items():
            ids = [known[key].id for key in sorted(after) if key in known]
            dependency = f"afterok:{':'.join(ids)}" if ids else None
            records = self._sbatch(jobs, dependency)
            known |= {record.key: record for record in records}
            yield records

    def _sbatch(self, jobs: Sequence[Job], dependency: str | None) -> list[JobRecord]:
        """One job, or an array of several."""
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor = SlurmExecutor(self.folder.root, max_num_timeout=_NO_LIMIT)
        executor.update_parameters(**self.settings.slurm_parameters(dependency))
        try:
            return self._submit(jobs, executor)
        except (FailedJobError, FailedSubmissionError) as error:
            names = ", ".join(job.key for job in jobs)
            advice = "see hydra.launcher.*; jobs submitted before go on, and the same command finds them again"
            raise UserError(f"sbatch refuses {names}: {str(error).strip()}; {advice}") from error

    def _cancel_unrecorded(self) -> None:
        """End what a launcher submitted that was killed before it could record it."""
        recorded = {record.id for record in self.folder.read()[1].values()}
        lost = sorted(self.queue.scripts_below(self.folder.root).keys() - recorded)
        if lost:
            logger.warning("cancelled, since a launcher was killed before it recorded them: jobs %s", ", ".join(lost))
            self.queue.cancel(lost)


class LocalSubmission(Submission):
    """submitit's processes on this machine: a few at a time, each started from here when those before it are done."""

    kind = "local"
    unattended = False

    def __init__(self, settings: SlurmSettings, folder: Path, entry: Entry) -> None:
        super().__init__(settings, folder, entry)
        self.queue = LocalQueue(self.folder.root)
        self._parameters = settings.local_parameters(_gpu_numbers())
        if settings.detach:
            raise wrong("detach", True, "slurm_local has no queue that would start jobs later; set it to false")

    def start(
        self, waiting: Sequence[Job], submitted: Mapping[str, JobRecord], running: Collection[str]
    ) -> Iterator[list[JobRecord]]:
        from submitit import LocalExecutor

        unfinished = {*running, *(job.key for job in waiting)}
        ready = [job for job in waiting if not unfinished.intersection(job.after)]
        room = max(0, (self.settings.array_parallelism or 1) - len(running))
        executor = LocalExecutor(self.folder.root, max_num_timeout=_NO_LIMIT)
        executor.update_parameters(**self._parameters)
        for job in ready[:room]:
            with _deaf_to_interrupts():
                records = self._submit([job], executor)
            yield records


def _gpu_numbers() -> list[int]:
    """Raises UserError where they have names instead of numbers, which submitit cannot hand on."""
    names = visible_gpus()
    try:
        return [int(name) for name in names]
    except ValueError:
        rule = "slurm_local takes numbers; give 0,1 or use hydra/launcher=basic"
        raise UserError(f"{DEVICES}={','.join(names)}: {rule}") from None


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """What is started here does not hear a terminal's Ctrl-C, upon which submitit kills ranks that are saving.

    The ranks themselves do, as they set handlers of their own.
    """
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Without the marks of the Slurm job that this may itself run in, which sbatch and srun would take for orders."""
    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    from submitit.helpers import clean_env

    kept = {name: os.environ[name] for name in ("SLURM_CONF", "MASTER_PORT") if name in os.environ}
    with clean_env():
        os.environ.update(kept)
        yield
