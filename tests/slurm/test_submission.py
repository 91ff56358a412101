"""Jobs on a real Slurm, seen from the login node: arrays, dependencies, what fails, and what the launcher may miss."""

import os
import runpy
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from molgen_pretrain.launchers.jobs import Job, Outcome, State
from molgen_pretrain.launchers.slurm import SlurmJobs
from molgen_pretrain.launchers.slurm_records import JobFolder
from molgen_pretrain.launchers.slurm_settings import SlurmSettings
from molgen_pretrain.signals import EndAtOnce, Interrupted
from molgen_pretrain.tools.jobs import main as jobs_tool

pytestmark = pytest.mark.slurm

# A rank's life; {note} is a file of the job, {trunk} that of the job before it; {folder} holds them all.
NOTE = "import time; open('{note}', 'a').close()"
WAIT = NOTE + "; time.sleep(60)"
BRANCH = "import os; assert os.path.exists('{trunk}')\n" + NOTE
THREE_MEET = (
    BRANCH
    + """
import glob
while len(glob.glob('{folder}/branch*.note')) < 3:
    time.sleep(0.1)
"""
)
FAIL = "import os, sys, time; time.sleep(60 if os.environ['RANK'] == '0' else 1); sys.exit(1)"


@dataclass
class Sweep:
    """Jobs in one folder."""

    folder: Path
    told: dict[str, Outcome] = field(default_factory=dict)

    def job(self, key: str, code: str = NOTE, *after: str) -> Job:
        script = self.folder / f"{key}.py"
        trunk = self.folder / f"{after[0] if after else ''}.note"
        script.write_text(code.format(note=self.folder / f"{key}.note", trunk=trunk, folder=self.folder))
        return Job(key, str(script), self.folder / key, after)

    def run(self, jobs: Sequence[Job], **settings: Any) -> dict[str, State]:
        launcher = SlurmJobs(SlurmSettings(**{"poll_seconds": 0.3, "timeout_min": 10, **settings}))
        outcomes = launcher.run(
            jobs,
            runpy.run_path,
            folder=self.folder / "jobs",
            on_end=lambda job, outcome: self.told.update({job.key: outcome}),
        )
        assert self.told == outcomes
        return {key: outcome.state for key, outcome in outcomes.items()}

    def numbers(self) -> dict[str, str]:
        return {key: record.id for key, record in JobFolder(self.folder / "jobs").read()[1].items()}

    def wait_for(self, key: str) -> None:
        deadline = time.monotonic() + 30
        while not (self.folder / f"{key}.note").exists():
            assert time.monotonic() < deadline, f"{key} did not begin"
            time.sleep(0.1)


def tree(sweep: Sweep, cluster: Any) -> None:
    """Branches run at the same time once their trunk has; what fails takes only those below it along."""
    states = sweep.run(
        [
            sweep.job("trunk"),
            sweep.job("bad", FAIL),
            *(sweep.job(f"branch{i}", THREE_MEET, "trunk") for i in range(3)),
            sweep.job("below", NOTE, "bad"),
            sweep.job("deep", NOTE, "below"),
        ],
        tasks_per_node=2,
    )
    assert states == {
        "trunk": State.FINISHED,
        "bad": State.FAILED,
        **{f"branch{i}": State.FINISHED for i in range(3)},
        "below": State.BLOCKED,
        "deep": State.BLOCKED,
    }
    assert "rank 1: exit code 1" in sweep.told["bad"].detail
    numbers = sweep.numbers()
    assert cluster.state(numbers["bad"]) == "FAILED"
    assert not (sweep.folder / "below.note").exists()
    array = {numbers[f"branch{i}"].partition("_")[0] for i in range(3)}
    assert len(array) == 1, "three branches are one array"


def detached(sweep: Sweep, cluster: Any) -> None:
    """The launcher returns at once; a second one finds the live jobs, and ends those that the first had lost."""
    jobs = [sweep.job("trunk", NOTE + "; time.sleep(6)"), sweep.job("branch", BRANCH, "trunk")]
    began = time.monotonic()
    assert sweep.run(jobs, detach=True) == {"trunk": State.SUBMITTED, "branch": State.SUBMITTED}
    assert time.monotonic() - began < 10
    first = sweep.numbers()
    lost_script = sweep.folder / "jobs" / "lost.sh"
    lost_script.write_text("#!/bin/sh\nsleep 60\n")
    lost = cluster.run("sbatch", "--parsable", "--output=/dev/null", str(lost_script)).strip()
    sweep.told.clear()
    states = sweep.run([*jobs, sweep.job("late", BRANCH, "trunk")])
    assert states == {"trunk": State.FINISHED, "branch": State.FINISHED, "late": State.FINISHED}
    numbers = sweep.numbers()
    assert {key: numbers[key] for key in first} == first
    assert cluster.state(lost) == "CANCELLED"


def cancelled(sweep: Sweep, cluster: Any) -> None:
    """`tools.jobs cancel` ends a running job and what waits for it; the launcher hears of it."""
    sweep.run([sweep.job("long", WAIT), sweep.job("other", WAIT), sweep.job("below", NOTE, "long")], detach=True)
    numbers = sweep.numbers()
    sweep.wait_for("long")
    assert jobs_tool(["list", str(sweep.folder)]) == 0
    assert jobs_tool(["cancel", str(sweep.folder), "--key", "long"]) == 0
    assert jobs_tool(["follow", str(sweep.folder), "--key", "long", "--poll-seconds", "0.3"]) == 1
    assert cluster.state(numbers["other"]) == "RUNNING"
    assert jobs_tool(["cancel", str(sweep.folder)]) == 0
    assert jobs_tool(["follow", str(sweep.folder), "--poll-seconds", "0.3"]) == 1
    assert {key: cluster.state(number) for key, number in numbers.items()} == dict.fromkeys(numbers, "CANCELLED")


def interrupted(sweep: Sweep, cluster: Any) -> None:
    """In the main thread: a signal to the launcher leaves its jobs alone."""

    def interrupt_once_begun() -> None:
        sweep.wait_for("long")
        os.kill(os.getpid(), signal.SIGINT)

    stopper = threading.Thread(target=interrupt_once_begun)
    stopper.start()
    with pytest.raises(Interrupted), EndAtOnce():
        sweep.run([sweep.job("long", WAIT)])
    stopper.join()
    assert sweep.told["long"].state is State.SUBMITTED
    number = sweep.numbers()["long"]
    assert cluster.state(number) == "RUNNING"
    cluster.run("scancel", number)


@pytest.fixture(scope="module")
def endings(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[None]]]:
    """All scenarios at once, since most of their time is Slurm's."""
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor() as pool:
        for name, value in cluster.env.items():
            patch.setenv(name, value)
        yield {
            scenario.__name__: pool.submit(scenario, Sweep(tmp_path_factory.mktemp(scenario.__name__)), cluster)
            for scenario in (tree, detached, cancelled)
        }


def test_a_signal_leaves_the_jobs_alone(endings: dict[str, Future[None]], cluster: Any, tmp_path: Path) -> None:
    interrupted(Sweep(tmp_path), cluster)


@pytest.mark.parametrize("scenario", ["tree", "detached", "cancelled"])
def test_submission(scenario: str, endings: dict[str, Future[None]]) -> None:
    endings[scenario].result()
