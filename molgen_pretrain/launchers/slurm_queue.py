"""What has become of submitted jobs: Slurm's queue, or the processes of this machine."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from molgen_pretrain.errors import UserError

logger = logging.getLogger(__name__)

_SECONDS = 60  # for an answer
_GONE = "ENDED"  # how, a process that was not our child does not tell
_ENDED = {_GONE, "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"}
_ENDED |= {"OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"}
_NEVER = "DependencyNeverSatisfied"


@dataclass(frozen=True)
class Sighting:
    """A job as the queue shows it."""

    state: str  # Slurm's word: PENDING, RUNNING, COMPLETED, ...
    reason: str = ""  # why it is pending
    nodes: str = ""
    restarts: int = 0  # how often it was requeued
    exit_code: int = 0

    @property
    def has_ended(self) -> bool:
        return self.state in _ENDED

    @property
    def tells_nothing(self) -> bool:
        """Whether it has ended in a way that is not known here."""
        return self.state == _GONE

    @property
    def is_blocked(self) -> bool:
        """Whether a job that it waits for did not finish."""
        return self.reason == _NEVER

    def __str__(self) -> str:
        text = self.state.lower().replace("_", " ")
        if self.state == "PENDING" and self.reason not in ("", "None"):
            text += f" ({self.reason})"
        elif self.nodes and not self.has_ended:
            text += f" on {self.nodes}"
        elif self.exit_code:
            text += f" (exit code {self.exit_code})"
        return text + (
            f", requeued {self.restarts} times" if self.restarts > 1 else ", requeued" if self.restarts else ""
        )


class Queue(Protocol):
    """Where jobs wait and run."""

    @property
    def noun(self) -> str:
        """What a number of this queue is: `Slurm job`."""

    def look(self, ids: Collection[str]) -> dict[str, Sighting]:
        """What is known of these jobs; those that are not known are left out. Raises QueueSilent."""

    def cancel(self, ids: Collection[str]) -> None:
        """End these jobs for good; a running one is told to, so that it saves. Raises QueueSilent."""


class QueueSilent(Exception):
    """The queue gave no answer this time."""


class SlurmQueue:
    """Slurm's, through its commands: one squeue for all jobs, and sacct for those which slurmctld has forgotten."""

    noun = "Slurm job"

    def __init__(self) -> None:
        self._has_accounting = True

    def look(self, ids: Collection[str]) -> dict[str, Sighting]:
        if not ids:
            return {}
        fields = ("JobArrayID", "State", "Reason", "NodeList", "RestartCnt", "exit_code")
        seen = {}
        for job, state, reason, nodes, restarts, status in self._squeue(fields, ["--jobs", _whole_arrays(ids)]):
            seen[job] = Sighting(state, reason, nodes, int(restarts or 0), int(status or 0) >> 8)
        missing = [each for each in ids if each not in seen]
        return {**(self._look_back(missing) if missing else {}), **{each: seen[each] for each in ids if each in seen}}

    def scripts_below(self, folder: Path) -> dict[str, str]:
        """My jobs in the queue that were submitted with a script of this folder: number -> script."""
        jobs = self._squeue(("JobArrayID", "Command"), ["--me"], states="PENDING,RUNNING")
        return {job: command for job, command in jobs if Path(command).parent == folder}

    def cancel(self, ids: Collection[str]) -> None:
        if ids:
            self._ask("scancel", *ids)

    def _squeue(self, fields: Iterable[str], which: list[str], states: str = "all") -> list[list[str]]:
        form = ",".join(f"{field}:|" for field in fields)
        try:
            answer = self._ask("squeue", "--noheader", "--array", "--states", states, "--Format", form, *which)
        except QueueSilent as error:
            if "Invalid job id" in str(error):  # said where a single job is asked for that is forgotten
                return []
            raise
        return [[value.strip() for value in line.split("|")[:-1]] for line in answer.splitlines() if "|" in line]

    def _look_back(self, ids: list[str]) -> dict[str, Sighting]:
        if not self._has_accounting:
            return {}
        try:
            answer = self._ask(
                "sacct", "-n", "-X", "-P", "-o", "JobID,State,ExitCode,NodeList", "-j", _whole_arrays(ids)
            )
        except QueueSilent as error:
            self._has_accounting = "disabled" not in str(error)  # not every cluster keeps accounts
            return {}
        rows = [line.split("|") for line in answer.splitlines() if line.count("|") == 3]
        # `CANCELLED by 1000`; `1:0` is code and signal
        return {
            job: Sighting(state.split()[0], nodes=nodes, exit_code=int(code.partition(":")[0]))
            for job, state, code, nodes in rows
            if job in ids
        }

    @staticmethod
    def _ask(*command: str) -> str:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise QueueSilent(str(error)) from error
        if done.returncode:
            raise QueueSilent(f"{command[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
        return done.stdout


class LocalQueue:
    """Jobs of submitit's LocalExecutor: a job's number is that of the process which started its ranks."""

    noun = "process"

    def __init__(self, folder: Path) -> None:
        if not Path("/proc/self/cmdline").exists():
            raise UserError("hydra/launcher=slurm_local: needs Linux; use hydra/launcher=basic")
        self._folder = str(folder)

    def look(self, ids: Collection[str]) -> dict[str, Sighting]:
        return {each: Sighting("RUNNING" if self._is_running(each) else _GONE) for each in ids}

    def cancel(self, ids: Collection[str]) -> None:
        for each in ids:
            if self._is_running(each):
                os.kill(int(each), signal.SIGTERM)  # handed on to the ranks

    def _is_running(self, number: str) -> bool:
        try:
            command = Path(f"/proc/{number}/cmdline").read_bytes()
            if not command:  # of a zombie, and for a moment of a process that has just been started
                return Path(f"/proc/{number}/stat").read_text().rpartition(") ")[2][0] != "Z"
        except OSError:
            return False
        # Not a process that got the number later.
        return self._folder in command.decode(errors="replace").split("\0")


def _whole_arrays(ids: Iterable[str]) -> str:
    """For squeue and sacct: an array once, as they list its tasks."""
    return ",".join(sorted({each.partition("_")[0] for each in ids}))
