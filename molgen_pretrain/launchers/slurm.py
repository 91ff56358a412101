"""Jobs in Slurm's queue, or submitit's stand-in for it on this machine."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from molgen_pretrain.errors import UserError
from molgen_pretrain.launchers.jobs import Entry, Job, Outcome, State
from molgen_pretrain.launchers.slurm_queue import QueueSilent
from molgen_pretrain.launchers.slurm_records import JobRecord
from molgen_pretrain.launchers.slurm_settings import SlurmSettings, wrong
from molgen_pretrain.launchers.slurm_submit import LocalSubmission, SlurmSubmission, Submission
from molgen_pretrain.launchers.slurm_watch import JobWatch

logger = logging.getLogger(__name__)

_SUBMISSIONS: dict[str, type[Submission]] = {each.kind: each for each in (SlurmSubmission, LocalSubmission)}


class SlurmJobs:
    """A JobLauncher: jobs that wait for the same ones are an array, an arrow between jobs is a dependency.

    With the executor `local` no Slurm is needed: submitit runs the same jobs as processes of this machine.
    """

    def __init__(self, settings: SlurmSettings, executor: str = "slurm") -> None:
        if executor not in _SUBMISSIONS:
            raise wrong("executor", executor, f"must be one of {', '.join(_SUBMISSIONS)}")
        self._settings = settings
        self._submission = _SUBMISSIONS[executor]

    @property
    def ranks(self) -> int:
        return self._settings.ranks

    @property
    def unattended(self) -> bool:
        return self._submission.unattended

    def run(
        self,
        jobs: Sequence[Job],
        entry: Entry,
        *,
        folder: Path,
        on_end: Callable[[Job, Outcome], None] = lambda job, outcome: None,
    ) -> Mapping[str, Outcome]:
        """Jobs that an earlier call submitted and that are in the queue are followed, not submitted again.

        A key in `after` that is not among `jobs` has finished. With `detach` every outcome is SUBMITTED. A
        signal ends the waiting: Slurm's jobs go on, those on this machine are told to save and stop.
        Raises UserError for settings that cannot be, or that Slurm refuses; Interrupted.
        """
        _require_submitit()
        submission = self._submission(self._settings, folder, entry)
        folder.mkdir(parents=True, exist_ok=True)
        followed = _Followed(jobs, submission, on_end)
        try:
            followed.begin()
            if self._settings.detach:
                followed.leave(State.SUBMITTED)
            while not followed.is_over:
                time.sleep(self._settings.poll_seconds)
                followed.go_on()
        except KeyboardInterrupt:  # as Interrupted is
            followed.abandon()
            raise
        return followed.outcomes


class _Followed:
    """The jobs of one call, from submission to their outcomes."""

    def __init__(self, jobs: Sequence[Job], submission: Submission, on_end: Callable[[Job, Outcome], None]) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self._jobs = {job.key: job for job in jobs}
        self._waiting = list(jobs)  # for their submission
        self._submitted: dict[str, JobRecord] = {}
        self._submission = submission
        self._on_end = on_end
        self._watch = JobWatch(submission.folder, submission.queue)

    @property
    def is_over(self) -> bool:
        return len(self.outcomes) == len(self._jobs)

    def begin(self) -> None:
        try:
            live = self._submission.find_live(self._waiting)
        except QueueSilent as error:
            raise UserError(f"no answer from the queue: {error}; the same command tries again") from error
        if live:
            self._follow(live)
            logger.info("in the queue already, and followed:\n%s", _table(live))
        self.go_on()

    def go_on(self) -> None:
        """Look at the queue, and submit what has become possible."""
        for key, outcome in self._watch.look().items():
            self._tell(key, outcome)
        for job in self._waiting:
            self._tell_if_blocked(job)
        self._waiting = [job for job in self._waiting if job.key not in self.outcomes]
        running = [record.key for record in self._watch.running]
        for records in self._submission.start(self._waiting, self._submitted, running):
            self._follow(records)
            logger.info("submitted:\n%s", _table(records))

    def leave(self, state: State) -> None:
        """Wait no longer."""
        logger.info("%s", self._advice())
        for record in self._watch.running:
            self._tell(record.key, Outcome(state, f"{self._submission.queue.noun} {record.id}"))

    def abandon(self) -> None:
        """A signal ends this process."""
        if self._submission.unattended:
            logger.warning("the jobs go on; the same command waits for them again")
            self.leave(State.SUBMITTED)
        else:
            logger.warning("the jobs save and stop; the same command continues them")
            self._submission.queue.cancel([record.id for record in self._watch.running])
            self.leave(State.STOPPED)
        for job in self._waiting:
            self._tell(job.key, Outcome(State.BLOCKED, "not begun"))

    def _follow(self, records: Sequence[JobRecord]) -> None:
        self._watch.add(records)
        self._submitted.update({record.key: record for record in records})
        self._waiting = [job for job in self._waiting if job.key not in self._submitted]

    def _tell_if_blocked(self, job: Job) -> None:
        failed = [key for key in job.after if key in self.outcomes and self.outcomes[key].state is not State.FINISHED]
        if failed:
            logger.info("%s: blocked, since %s did not finish", job.key, failed[0])
            self._tell(job.key, Outcome(State.BLOCKED, f"{failed[0]} did not finish"))

    def _tell(self, key: str, outcome: Outcome) -> None:
        self.outcomes[key] = outcome
        self._on_end(self._jobs[key], outcome)

    def _advice(self) -> str:
        tool, where = "python -m molgen_pretrain.tools.jobs", shlex.quote(str(self._submission.folder.root))
        return f"to follow: {tool} follow {where}\nto cancel: {tool} cancel {where}"


def _table(records: Sequence[JobRecord]) -> str:
    """Key, number and run directory of each."""
    keys, ids = (max(len(text) for text in column) for column in zip(*((r.key, r.id) for r in records), strict=True))
    return "\n".join(f"  {r.key:<{keys}}  job {r.id:<{ids}}  {r.run}" for r in records)


def _require_submitit() -> None:
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise UserError('hydra/launcher=slurm: needs submitit: pip install "molgen-pretrain[slurm]"') from None
