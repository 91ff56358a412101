"""One rank of a job that submitit has started: its place among the others, its exit, its word on how the job ended."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from molgen_pretrain.launchers.jobs import Entry, State
from molgen_pretrain.launchers.requeue import come_back
from molgen_pretrain.signals import SIGNALS, EndAtOnce, Interrupted

if TYPE_CHECKING:
    from submitit import JobEnvironment
    from submitit.helpers import DelayedSubmission

logger = logging.getLogger(__name__)

# Longer than Slurm's KillWait (30 s by default), in which it ends what it has requeued.
_LEAVE_SECONDS = 90.0
_POLL_SECONDS = 0.2


@dataclass
class RankTask:
    """What submitit unpickles and calls in every task of a job, be it under srun or on this machine.

    Exits as `entry` does, so that a rank that fails fails the Slurm job. Where a signal has stopped the run and
    Slurm is to start it again, rank 0 sees to that, and no rank exits before Slurm ends it: the first exit code
    would end the job. `outcome_file` is there only once the job has ended, as {"state", "detail"}; a job whose
    processes were killed has none.
    """

    entry: Entry
    payload: Any
    max_requeues: int | None  # None: as often as it takes
    outcome_file: Path

    def __call__(self) -> None:
        from submitit import JobEnvironment

        job = JobEnvironment()
        export_rank(job)
        if job.global_rank == 0:
            self.outcome_file.unlink(missing_ok=True)  # somebody has requeued an ended job
        # In place of submitit's, which would requeue a second time, or Python's, which would end what is to requeue.
        signals = _Signals()
        code = self._run(job.global_rank)
        if code and job.cluster == "slurm":
            self._settle(job.global_rank, code - 128, signals)
        elif code and job.global_rank == 0:
            self._note_stop(f"stopped by signal {code - 128}")
        elif job.global_rank == 0:
            self._note(State.FINISHED, "")
        sys.exit(code)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit starts after a requeue of its own, which its handler does until `__call__` has its own."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _run(self, rank: int) -> int:
        """Run the entry. Returns 0, or 128 + the signal that stopped it; leaves where it failed, once that is noted."""
        try:
            with EndAtOnce():  # until the entry has handlers of its own
                self.entry(self.payload)
        except Interrupted as interrupt:
            return 128 + interrupt.number
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
            if 0 < code <= 128:
                self._note(State.FAILED, f"rank {rank}: exit code {code}")
                raise
            return code
        except Exception as error:
            self._note(State.FAILED, f"rank {rank}: {type(error).__name__}: {error}")
            raise  # submitit prints its trace
        return 0

    def _settle(self, rank: int, number: int, signals: _Signals) -> None:
        """Let rank 0 find out what becomes of the job; returns when this rank may leave."""
        if rank == 0:
            verdict = come_back(number, max_requeues=self.max_requeues)
            logger.warning("%s", verdict.reason)
            if not verdict.comes_back:
                self._note_stop(verdict.reason)
                return
        deadline = time.monotonic() + _LEAVE_SECONDS
        while not signals.heard and not self.outcome_file.exists() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def _note_stop(self, detail: str) -> None:
        # Where another rank has failed, that is why this one was stopped.
        if not self.outcome_file.exists():
            self._note(State.STOPPED, detail)

    def _note(self, state: State, detail: str) -> None:
        # Several ranks may fail at once.
        aside = self.outcome_file.with_name(f".{self.outcome_file.name}.{os.environ['RANK']}")
        aside.write_text(json.dumps({"state": state.value, "detail": detail}) + "\n")
        os.replace(aside, self.outcome_file)


class _Signals:
    """Remembers signals and does nothing else about them."""

    def __init__(self) -> None:
        self.heard: list[int] = []
        for number in SIGNALS:
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.heard.append(number)


def export_rank(job: JobEnvironment) -> None:
    """Set what torch's env:// rendezvous reads, as torchrun would, from the place that submitit knows."""
    size, nodes = job.num_tasks, job.num_nodes
    os.environ.update(
        RANK=str(job.global_rank),
        WORLD_SIZE=str(size),
        LOCAL_RANK=str(job.local_rank),
        LOCAL_WORLD_SIZE=str(size // nodes),
        MASTER_ADDR=job.hostnames[0] if nodes > 1 else "127.0.0.1",
    )
    # The job's script has looked for a free one. Where there is no script (submitit's local executor) the job's
    # number, its first process's, spreads jobs over ports that systems do not hand out by themselves.
    os.environ.setdefault("MASTER_PORT", str(20000 + int(job.raw_job_id) % 10000))
