"""What a cluster does to a job, done to 2 nodes x 2 ranks each: which of them come back, and where they go on."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import stand_in
from submitit import SlurmExecutor

from molgen_pretrain.launchers.rank import RankTask

pytestmark = pytest.mark.slurm

LAUNCH = Path(__file__).resolve().parents[2] / "launch"

END_SECONDS = 100.0


@dataclass
class Submitted:
    """A job in the queue, its run, and its ranks' last word."""

    cluster: Any
    number: str
    plan: stand_in.Plan
    outcome_file: Path

    def wait_for_steps(self, start: int, count: int = 3) -> None:
        """Until the run has done `count` steps in its `start`-th start."""
        deadline = time.monotonic() + END_SECONDS
        while sum(s == start for s, _ in self.plan.steps()) < count:
            assert time.monotonic() < deadline, f"start {start} never came: {self.cluster.show(self.number)}"
            time.sleep(0.1)

    def end(self) -> tuple[str, int, str]:
        """Wait; returns Slurm's state, how often it was started again, and what the outcome file says."""
        fields = self.cluster.wait(self.number, seconds=END_SECONDS)
        outcome = json.loads(self.outcome_file.read_text()) if self.outcome_file.exists() else {"state": "none"}
        return fields["JobState"], int(fields["Restarts"]), outcome["state"]

    def signal(self, name: str) -> None:
        self.cluster.run("scancel", f"--signal={name}", self.number)


def by_signal(job: Submitted) -> None:
    job.wait_for_steps(start=0)
    job.signal("USR2")


def by_signal_twice(job: Submitted) -> None:
    by_signal(job)
    job.wait_for_steps(start=1)
    job.signal("USR2")


def by_preemption(job: Submitted) -> None:
    job.wait_for_steps(start=0)
    job.cluster.run("sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")


End = tuple[Submitted, tuple[str, int, str]]


@dataclass(frozen=True)
class Scenario:
    """What is done to a job, with which settings, and how it must end: state, restarts, outcome."""

    act: Callable[[Submitted], None]
    end: tuple[str, int, str]
    max_requeues: int | None = None
    slurm: tuple[tuple[str, Any], ...] = ()


# What befalls whole training runs of fewer ranks is in test_application.py.
SCENARIOS = {
    "USR2": Scenario(by_signal, ("COMPLETED", 1, "finished")),
    "preemption": Scenario(by_preemption, ("COMPLETED", 1, "finished"), slurm=(("partition", "low"),)),
    "limit of requeues": Scenario(by_signal_twice, ("FAILED", 1, "stopped"), max_requeues=1),
}


@pytest.fixture(scope="module")
def submit(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Scenario], Submitted]]:
    lock = threading.Lock()  # submitit's parameters and paths are not made for threads

    def submit_one(scenario: Scenario) -> Submitted:
        with lock:
            folder = tmp_path_factory.mktemp("job")
            restarts = 1 if scenario.end[2] == "finished" else 99
            plan = stand_in.Plan(folder, restarts=restarts)
            limit = "" if scenario.max_requeues is None else scenario.max_requeues
            executor = SlurmExecutor(folder)
            executor.update_parameters(
                **{
                    "nodes": 2,
                    "ntasks_per_node": 2,
                    "time": 30,
                    "setup": ["export SLURM_KILL_BAD_EXIT=1"],
                    "teardown": [f"exec {sys.executable} -m molgen_pretrain.launchers.requeue $? {limit}"],
                    "additional_parameters": {"requeue": True},
                    "stderr_to_stdout": True,
                    **dict(scenario.slurm),
                }
            )
            outcome_file = folder / "outcome.json"
            job = executor.submit(RankTask(stand_in.train, plan, scenario.max_requeues, outcome_file))
            return Submitted(cluster, job.job_id, plan, outcome_file)

    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.env.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # for the job, to find the stand-in
        yield submit_one


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    """All at once: most of their time is waiting."""
    with ThreadPoolExecutor(len(SCENARIOS) + 1) as pool:
        yield pool


@pytest.fixture(scope="module")
def ended(
    submit: Callable[[Scenario], Submitted], pool: ThreadPoolExecutor, from_script: Future[Path]
) -> dict[str, Future[End]]:
    def play(scenario: Scenario) -> End:
        job = submit(scenario)
        scenario.act(job)
        return job, job.end()

    return {name: pool.submit(play, scenario) for name, scenario in SCENARIOS.items()}


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_becomes_of_a_job(name: str, ended: dict[str, Future[End]]) -> None:
    job, end = ended[name].result(END_SECONDS)
    log = "".join(path.read_text() for path in sorted(job.plan.folder.glob("*_log.out")))
    assert end == SCENARIOS[name].end, log
    # No step was lost and none was done twice.
    steps = [step for _, step in job.plan.steps()]
    assert steps == list(range(1, len(steps) + 1))
    assert int(job.plan.saved.read_text()) == len(steps)


# In place of Python: says where it is and, in its first start, waits for a signal that it does not handle.
RANK = """\
#!/bin/sh
if [ "$2" != molgen_pretrain ]; then exec {python} "$@"; fi
file="{folder}/${{SLURM_RESTART_COUNT:-0}}.$RANK"
echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR:$MASTER_PORT $RUN_NAME $*" >"$file"
if [ -z "$SLURM_RESTART_COUNT" ]; then exec sleep 60; fi
"""


@pytest.fixture(scope="module")
def from_script(cluster: Any, pool: ThreadPoolExecutor, tmp_path_factory: pytest.TempPathFactory) -> Future[Path]:
    """launch/slurm.sbatch with a USR2 in the seconds before Python handles signals; the folder of its ranks' words."""
    folder = tmp_path_factory.mktemp("script")
    python = folder / "python"
    python.write_text(RANK.format(python=sys.executable, folder=folder))
    python.chmod(0o755)
    size = ("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1", "--gpus-per-node=0", "--job-name=mine")
    script = (str(LAUNCH / "slurm.sbatch"), "optimizer.lr=1e-3", "description=two words")

    def play() -> Path:
        log = f"--output={folder}/log"
        number = cluster.run(
            "sbatch", "--parsable", *size, log, f"--export=ALL,MOLGEN_PYTHON={python}", *script
        ).strip()
        deadline = time.monotonic() + END_SECONDS
        while len(list(folder.glob("0.*"))) < 4:
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        cluster.run("scancel", "--signal=USR2", number)
        fields = cluster.wait(number, seconds=END_SECONDS)
        assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "1"), (folder / "log").read_text()
        return folder

    return pool.submit(play)


def test_the_batch_script_starts_ranks_and_brings_them_back(from_script: Future[Path]) -> None:
    folder = from_script.result(END_SECONDS)
    for start in (0, 1):
        words = [(folder / f"{start}.{rank}").read_text().split(maxsplit=6) for rank in range(4)]
        assert [word[:4] for word in words] == [[str(rank), str(rank % 2), "4", "2"] for rank in range(4)]
        (address,) = {word[4] for word in words}
        assert address.startswith("127.0.0.1:")
        assert {word[6] for word in words} == {"-m molgen_pretrain optimizer.lr=1e-3 description=two words\n"}
    names = {path.read_text().split()[5] for path in folder.glob("[01].*")}
    assert len(names) == 1
    assert names.pop().startswith("mine-")
