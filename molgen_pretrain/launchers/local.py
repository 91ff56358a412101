"""Jobs on this machine: each in processes of its own, several at a time if wanted."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path

from molgen_pretrain.errors import UserError
from molgen_pretrain.launchers.jobs import Entry, Job, Outcome, State
from molgen_pretrain.launchers.local_process import JobProcesses, start_server
from molgen_pretrain.launchers.local_shares import Shares
from molgen_pretrain.run_directory import RunDirectory
from molgen_pretrain.signals import Interrupted, StopRequest

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5


class LocalJobs:
    """A JobLauncher whose jobs are fresh processes of this machine, forked from a server with slow imports done.

    One job at a time speaks on the terminal; of several, each writes to `<folder>/<key>.log`. A signal to this
    process is handed on: what runs saves and stops, nothing else is started. A second one ends all at once. Jobs
    whose launcher was killed save and stop too.
    """

    def __init__(
        self, parallel: int = 1, processes: int = 1, *, preload: Sequence[str] = (), grace_seconds: float = 20.0
    ) -> None:
        """
        Args:
            parallel: jobs at a time, each with its share of the cores (unless OMP_NUM_THREADS is set) and GPUs.
            processes: ranks per job.
            preload: names of modules that the jobs need and that take long to import.
            grace_seconds: for the ranks beside one that failed, to notice it and to leave by themselves.

        Raises:
            UserError: a number below 1.
        """
        for name, value in (("parallel", parallel), ("processes", processes)):
            if value < 1:
                raise UserError(f"hydra.launcher.{name}={value}: must be 1 or more")
        self._parallel = parallel
        self._processes = processes
        self._preload = tuple(preload)
        self._grace_seconds = grace_seconds

    @property
    def ranks(self) -> int:
        """Processes per job."""
        return self._processes

    @property
    def unattended(self) -> bool:
        """Never: they end with this process."""
        return False

    def run(
        self,
        jobs: Sequence[Job],
        entry: Entry,
        *,
        folder: Path,
        on_end: Callable[[Job, Outcome], None] = lambda job, outcome: None,
    ) -> Mapping[str, Outcome]:
        """See JobLauncher.run. Called in the main thread, since it listens to signals.

        Raises:
            UserError: there are GPUs, but too few for `parallel` jobs.
            Interrupted: by a signal, when all that ran has ended.
        """
        _check_order(jobs)
        shares = Shares.of_this_machine(self._parallel, self._processes)
        if not jobs:
            return {}
        folder.mkdir(parents=True, exist_ok=True)
        start_server(self._preload)
        shift = _Shift(jobs, entry, shares, folder, self._grace_seconds, on_end)
        with _Relay(shift.hand_on, announces=self._parallel > 1) as relay:
            try:
                shift.work(relay)
            finally:
                shift.end()
        if relay.signal:
            raise Interrupted(relay.signal)
        return shift.outcomes


def _check_order(jobs: Sequence[Job]) -> None:
    earlier: set[str] = set()
    for job in jobs:
        if missing := set(job.after) - earlier:
            raise ValueError(f"job {job.key} waits for {sorted(missing)}, which do not come before it")
        earlier.add(job.key)


class _Relay(StopRequest):
    """A stop request that hands the signal on at once, whatever the main thread does.

    A terminal or a scheduler may have told the ranks already, and only for a moment do they take it for an echo.
    """

    def __init__(self, hand_on: Callable[[int], None], *, announces: bool) -> None:
        super().__init__(announces=announces)
        self._hand_on = hand_on

    def _hear_first(self, number: int) -> None:
        self._hand_on(number)
        super()._hear_first(number)


@dataclass(frozen=True)
class _Running:
    job: Job
    processes: JobProcesses
    began: float


class _Shift:
    """The jobs of one `run`, from waiting over running to their outcomes."""

    def __init__(
        self,
        jobs: Sequence[Job],
        entry: Entry,
        shares: Shares,
        folder: Path,
        grace_seconds: float,
        on_end: Callable[[Job, Outcome], None],
    ) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self._labels = {job.key: f"{number}/{len(jobs)} {job.key}" for number, job in enumerate(jobs, start=1)}
        self._waiting = list(jobs)
        self._running: dict[int, _Running] = {}  # by slot
        self._entry = entry
        self._shares = shares
        self._folder = folder
        self._grace_seconds = grace_seconds
        self._on_end = on_end

    def work(self, stop: StopRequest) -> None:
        """Until every job has its outcome."""
        self._settle_waiting(stop)
        while self._running:
            self._wait()
            for slot, running in list(self._running.items()):
                outcome = running.processes.poll()
                if outcome is not None:
                    del self._running[slot]
                    self._finish(running.job, outcome, seconds=time.monotonic() - running.began)
            self._settle_waiting(stop)

    def hand_on(self, number: int) -> None:
        """A signal for all that runs. From any thread."""
        for running in list(self._running.values()):
            running.processes.hand_on(number)

    def end(self) -> None:
        """Nothing runs any more, whatever happened here."""
        self.hand_on(signal.SIGTERM)
        for running in self._running.values():
            running.processes.end()

    def _settle_waiting(self, stop: StopRequest) -> None:
        """Start what can start, and give up what never will. Jobs come after those that they wait for."""
        for job in list(self._waiting):
            states = {key: self.outcomes[key].state for key in job.after if key in self.outcomes}
            broken = [key for key, state in states.items() if state is not State.FINISHED]
            slot = next((slot for slot in range(self._shares.parallel) if slot not in self._running), None)
            if broken:
                self._give_up(job, Outcome(State.BLOCKED, f"waits for {broken[0]}, which is {states[broken[0]].value}"))
            elif stop.signal:
                self._give_up(job, Outcome(State.STOPPED, "not started"))
            elif slot is not None and len(states) == len(job.after):
                self._start(job, slot, stop)

    def _give_up(self, job: Job, outcome: Outcome) -> None:
        self._waiting.remove(job)
        self._finish(job, outcome)

    def _start(self, job: Job, slot: int, stop: StopRequest) -> None:
        self._waiting.remove(job)
        began = time.monotonic()
        logger.info("%s: started", self._labels[job.key])
        processes = JobProcesses(
            self._entry,
            job.payload,
            self._shares.environments(slot),
            threads=self._shares.threads,
            output=self._output(job),
            grace_seconds=self._grace_seconds,
        )
        self._running[slot] = _Running(job, processes, began)
        if stop.signal:  # it came before the relay knew of them
            processes.hand_on(stop.signal)

    def _output(self, job: Job) -> Path | None:
        return self._folder / f"{job.key}.log" if self._shares.parallel > 1 else None

    def _wait(self) -> None:
        """For the end of a rank."""
        running = [running.processes for running in self._running.values()]
        timeout = _POLL_SECONDS if any(processes.is_failing for processes in running) else None
        wait([sentinel for processes in running for sentinel in processes.sentinels], timeout)

    def _finish(self, job: Job, outcome: Outcome, *, seconds: float = 0.0) -> None:
        self.outcomes[job.key] = outcome
        label = self._labels[job.key]
        if outcome.state is State.FINISHED:
            logger.info("%s: finished in %s", label, timedelta(seconds=round(seconds)))
        elif outcome.state is State.FAILED:
            log = self._output(job) or RunDirectory(job.folder).log(0)
            logger.error("%s: failed: %s, see %s", label, outcome.detail, log)
        else:
            logger.warning("%s: %s: %s", label, outcome.state.value, outcome.detail)
        self._on_end(job, outcome)
