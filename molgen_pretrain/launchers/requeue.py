"""Whether a Slurm job that a signal has stopped comes back, and the requeue that makes it so.

What a signal means only Slurm knows (seen on 22.05):

- before the time limit and at `scancel --signal=USR2` it sends USR2 and lets the job run;
- a preempted job with a grace time gets SIGTERM, runs on, and has a PreemptTime. If it leaves within the grace
  time it counts as failed, so it must be requeued from inside;
- `scontrol requeue`, and preemption without a grace time, have requeued the job by the time its SIGTERM arrives: it
  is COMPLETING, and its count of restarts is one higher than the one in its environment;
- after `scancel` it is COMPLETING too, with the old count. `scontrol requeue` would bring it back to life.

`python -m molgen_pretrain.launchers.requeue CODE [MAX]` is for the end of a batch script, after srun has ended with
CODE: it brings back what was stopped where no rank could ask for it, as in the seconds before Python handles signals.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

_SIGNALS_BEFORE_THE_END = frozenset({signal.SIGUSR1, signal.SIGUSR2})
_ANSWER_SECONDS = 20.0  # for scontrol, which repeats what a busy slurmctld does not answer
_PATIENCE_SECONDS = 60.0
_RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class Verdict:
    """What becomes of a stopped job."""

    comes_back: bool
    reason: str  # for people


@dataclass(frozen=True)
class _Job:
    """What `scontrol show job` says, as far as it matters here."""

    state: str
    restarts: int
    is_preempted: bool

    @classmethod
    def parse(cls, text: str) -> _Job:
        """Fields that begin a line, as they have since Slurm 14: the job's name, a user's text, comes in the first."""
        restarts = re.search(r"^\s+Requeue=\d+ Restarts=(\d+)", text, re.MULTILINE)
        preempted = re.search(r"^\s+(?:\w+=\S+ )*PreemptTime=(\d\S*)", text, re.MULTILINE)
        state = re.search(r"^\s+JobState=(\S+)", text, re.MULTILINE)
        if state is None:
            raise _NoAnswerError(f"scontrol does not say the job's state: {text.strip()[:200]!r}")
        return cls(state[1], int(restarts[1]) if restarts else 0, preempted is not None)


class _NoAnswerError(Exception):
    """scontrol failed: it may be another time."""


def come_back(signal_number: int, *, max_requeues: int | None) -> Verdict:
    """Decide whether this job, stopped by `signal_number` with everything saved, goes on later; requeue it if need be.

    For one process of the job. `max_requeues`: how often it may come back at its own wish; None is without limit.
    Where it comes back Slurm ends what is left of it; until then none of its processes should exit.
    """
    if shutil.which("scontrol") is None:
        return Verdict(False, "there is no scontrol on this node's PATH to requeue the job with")
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return _decide(_Job.parse(_scontrol("show", "job", _job_id())), signal_number, max_requeues)
        except _NoAnswerError as error:
            # A requeue that has not answered may have been heard: ask again for the job's state first.
            if time.monotonic() > deadline:
                return Verdict(False, str(error))
        time.sleep(_RETRY_SECONDS)


def _decide(job: _Job, signal_number: int, max_requeues: int | None) -> Verdict:
    past = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    if job.restarts > past:
        return Verdict(True, "requeued by Slurm")
    if job.state != "RUNNING":
        return Verdict(False, f"ended by Slurm ({job.state})")
    if signal_number not in _SIGNALS_BEFORE_THE_END and not job.is_preempted:
        return Verdict(False, f"stopped by signal {signal_number}, and Slurm knows of no reason to start it again")
    if max_requeues is not None and past >= max_requeues:
        return Verdict(False, f"stopped by signal {signal_number}, after {past} of at most {max_requeues} requeues")
    _scontrol("requeue", _job_id())
    return Verdict(True, f"requeued after signal {signal_number}")


def _job_id() -> str:
    """The number by which scontrol means just this job: a task's raw number may be that of its whole array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def _scontrol(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["scontrol", *arguments],
            capture_output=True,
            text=True,
            timeout=_ANSWER_SECONDS,
            env=_plain_output(os.environ),
        )
    except subprocess.TimeoutExpired as error:
        raise _NoAnswerError(f"scontrol {arguments[0]}: {error}") from error
    if done.returncode:
        raise _NoAnswerError(f"scontrol {arguments[0]}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def _plain_output(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without the user's wishes for scontrol's output, as SCONTROL_ALL or a time format."""
    return {k: v for k, v in environment.items() if not k.startswith("SCONTROL_") and k != "SLURM_TIME_FORMAT"}


def main(arguments: list[str]) -> int:
    """After srun: says what becomes of the job and returns its exit code; waits for the end where it comes back."""
    code, limit = int(arguments[0]), int(arguments[1]) if arguments[1:] and arguments[1] else None
    if code <= 128:
        return code
    verdict = come_back(code - 128, max_requeues=limit)
    print(f"job {_job_id()}: {verdict.reason}", file=sys.stderr, flush=True)
    if verdict.comes_back:
        time.sleep(_PATIENCE_SECONDS)  # Slurm ends the script
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
