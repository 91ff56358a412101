"""What became of a job, from what the queue shows and what rank 0 left; and the queue's answers themselves."""

import json
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

from molgen_pretrain.launchers import slurm_watch
from molgen_pretrain.launchers.jobs import State
from molgen_pretrain.launchers.slurm_queue import LocalQueue, QueueSilent, Sighting, SlurmQueue
from molgen_pretrain.launchers.slurm_records import JobFolder, JobRecord
from molgen_pretrain.launchers.slurm_watch import JobWatch

CANCELLED, COMPLETED, FAILED = Sighting("CANCELLED"), Sighting("COMPLETED"), Sighting("FAILED", exit_code=1)


class PretendedQueue:
    """Shows what `jobs` says, by number; None is silence."""

    noun = "Slurm job"

    def __init__(self) -> None:
        self.jobs: dict[str, Sighting] | None = {}

    def look(self, ids: Collection[str]) -> dict[str, Sighting]:
        if self.jobs is None:
            raise QueueSilent("squeue: Socket timed out")
        return {each: self.jobs[each] for each in ids if each in self.jobs}

    def cancel(self, ids: Collection[str]) -> None:
        raise AssertionError("looking cancels nothing")


def record(key: str, number: str, *after: str) -> JobRecord:
    return JobRecord(key, number, f"/runs/{key}", None, (f"{number}_0_log.out",), after, "2026-11-20T17:00:00")


@pytest.fixture
def queue() -> PretendedQueue:
    return PretendedQueue()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def watch(tmp_path: Path, queue: PretendedQueue, said: list[str]) -> JobWatch:
    """A trunk and a branch that waits for it."""
    watch = JobWatch(JobFolder(tmp_path), queue, said.append)
    watch.add([record("trunk", "7"), record("branch", "8_1", "trunk")])
    return watch


def leave_word(folder: Path, key: str, state: str) -> None:
    (folder / f"{key}.outcome.json").write_text(json.dumps({"state": state, "detail": "a word"}))


@pytest.mark.parametrize(
    ("shown", "word", "state"),
    [
        (COMPLETED, "finished", State.FINISHED),
        (COMPLETED, None, State.FINISHED),  # a file server may show the word later
        (None, "finished", State.FINISHED),  # forgotten by slurmctld
        (None, "failed", State.FAILED),
        (None, "stopped", State.STOPPED),
        (FAILED, "stopped", State.STOPPED),
        (FAILED, "failed", State.FAILED),
        (FAILED, None, State.FAILED),
        (FAILED, "finished", State.FAILED),  # another rank, after rank 0
        (Sighting("TIMEOUT"), None, State.FAILED),
        (Sighting("OUT_OF_MEMORY"), None, State.FAILED),
        (CANCELLED, None, State.STOPPED),
        (CANCELLED, "stopped", State.STOPPED),
        (Sighting("RUNNING"), "stopped", None),  # started again, and its word is that of the last time
        (Sighting("COMPLETING"), "finished", None),
        (Sighting("PENDING", "BeginTime", restarts=1), None, None),
        (None, None, None),  # not yet known, or already forgotten: too early to say
    ],
)
def test_outcome(
    shown: Sighting | None,
    word: str | None,
    state: State | None,
    tmp_path: Path,
    queue: PretendedQueue,
    watch: JobWatch,
) -> None:
    queue.jobs = {"8_1": Sighting("PENDING", "Dependency")} | ({} if shown is None else {"7": shown})
    if word is not None:
        leave_word(tmp_path, "trunk", word)
    ended = watch.look()
    assert {key: outcome.state for key, outcome in ended.items()} == ({} if state is None else {"trunk": state})
    assert watch.look() == {}, "an end is told once"


def test_a_job_that_is_gone_without_a_word_fails_after_a_while(
    watch: JobWatch, queue: PretendedQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert watch.look() == {}
    monkeypatch.setattr(slurm_watch, "_GRACE_SECONDS", 0.0)
    ended = watch.look()
    assert (ended["trunk"].state, ended["branch"].state) == (State.FAILED, State.BLOCKED)


@pytest.mark.parametrize("shown", [CANCELLED, Sighting("PENDING", "DependencyNeverSatisfied"), None])
def test_what_waits_for_a_failed_job_is_blocked(shown: Sighting | None, watch: JobWatch, queue: PretendedQueue) -> None:
    queue.jobs = {"7": FAILED} | ({} if shown is None else {"8_1": shown})
    assert {key: outcome.state for key, outcome in watch.look().items()} == {
        "trunk": State.FAILED,
        "branch": State.BLOCKED,
    }


def test_a_line_for_each_change_and_none_for_silence(watch: JobWatch, queue: PretendedQueue, said: list[str]) -> None:
    running = Sighting("RUNNING", nodes="n[1-2]")
    looks = [
        {"7": Sighting("PENDING", "Priority")},
        {"7": Sighting("PENDING", "Resources")},
        None,
        {"7": running},
        {"7": running},
        {"7": Sighting("RUNNING", nodes="n[1-2]", restarts=1)},
        {"7": COMPLETED},
    ]
    for look in looks:
        queue.jobs = None if look is None else {**look, "8_1": Sighting("PENDING", "Dependency")}
        watch.look()
    assert [line for line in said if line.startswith("trunk")] == [
        "trunk: Slurm job 7 pending (Priority)",
        "trunk: Slurm job 7 running on n[1-2]",
        "trunk: Slurm job 7 running on n[1-2], requeued",
        "trunk: finished (Slurm job 7)",
    ]
    assert len(said) == 5


def program(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_forgotten_jobs_are_looked_up_in_the_accounts(commands: Path) -> None:
    program(commands, "squeue", "echo '5_0|RUNNING|None|n1|2|0|'; echo '5_1|PENDING|Dependency||0|0|'")
    program(commands, "sacct", "echo '6|CANCELLED by 1000|0:0|n2'; echo '5_7|FAILED|3:0|n3'; echo '9|COMPLETED|0:0|n1'")
    assert SlurmQueue().look(["5_0", "6", "5_7", "11"]) == {
        "5_0": Sighting("RUNNING", "None", "n1", restarts=2),
        "6": Sighting("CANCELLED", nodes="n2"),
        "5_7": Sighting("FAILED", nodes="n3", exit_code=3),
    }


def test_a_forgotten_job_is_an_answer_and_a_failed_command_is_none(commands: Path) -> None:
    program(commands, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    program(commands, "squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert SlurmQueue().look(["5"]) == {}
    program(commands, "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(QueueSilent, match="Unable to contact"):
        SlurmQueue().look(["5"])


def test_a_process_of_the_same_number_is_not_the_job(tmp_path: Path) -> None:
    job = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(tmp_path)])
    number = str(job.pid)
    try:
        assert LocalQueue(tmp_path).look([number])[number].state == "RUNNING"
        other = LocalQueue(tmp_path / "other")
        assert other.look([number])[number].has_ended
        other.cancel([number])
        assert job.poll() is None
        LocalQueue(tmp_path).cancel([number])
        assert job.wait(10) == -15
        assert LocalQueue(tmp_path).look([number])[number].has_ended
    finally:
        job.kill()
        job.wait()
