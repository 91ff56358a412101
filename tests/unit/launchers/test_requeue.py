"""Which stopped jobs come back, asked of a scontrol that answers as Slurm 22.05 did for each of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from molgen_pretrain.launchers.requeue import come_back

# The name is the user's text, and would be taken for a field by a reader that does not look at lines.
ANSWER = """\
JobId=7 JobName=x JobState=CANCELLED PreemptTime=2026-11-20T17:37:50
   UserId=me(1000) GroupId=me(1000) MCS_label=N/A
   Priority=4294901759 Nice=0 Account=(null) QOS=(null)
   JobState={state} Reason=None Dependency=(null)
   Requeue=1 Restarts={restarts} BatchFlag=1 Reboot=0 ExitCode=0:0
   RunTime=00:00:02 TimeLimit=365-00:00:00 TimeMin=N/A
   StartTime=2026-11-20T17:37:48 EndTime=2026-11-20T17:38:02 Deadline=N/A
   PreemptEligibleTime=2026-11-20T17:37:48 PreemptTime={preempted}
   SuspendTime=None SecsPreSuspend=0 LastSchedEval=2026-11-20T17:37:48
"""
RUNNING = {"state": "RUNNING", "restarts": 0, "preempted": "None"}
PREEMPTED = {**RUNNING, "preempted": "2026-11-20T17:37:50"}
CANCELLED = {**RUNNING, "state": "COMPLETING"}
REQUEUED = {**CANCELLED, "restarts": 1}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Call it with the fields of the job; returns the file in which the calls of scontrol are noted."""

    def answer(*, failures: int = 0, **fields: object) -> Path:
        (tmp_path / "answer").write_text(ANSWER.format(**fields))
        (tmp_path / "failures").write_text("x" * failures)
        fake = tmp_path / "bin" / "scontrol"
        fake.parent.mkdir()
        fake.write_text(
            f"#!/bin/sh\ncd {tmp_path}\n"
            'if [ "$1" = show ]; then cat answer; exit; fi\n'
            'if [ -s failures ]; then : >failures; echo "Unable to contact slurm controller" >&2; exit 1; fi\n'
            'echo "$@" >>calls\n'
        )
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", str(fake.parent), prepend=os.pathsep)
        for name in ("SLURM_RESTART_COUNT", "SLURM_ARRAY_JOB_ID"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        return tmp_path / "calls"

    return answer


@pytest.mark.parametrize(
    ("number", "job", "past", "limit", "comes_back", "is_requeued"),
    [
        (signal.SIGUSR2, RUNNING, 0, None, True, True),
        (signal.SIGUSR1, RUNNING, 0, 1, True, True),
        (signal.SIGUSR2, {**RUNNING, "restarts": 1}, 1, 1, False, False),
        (signal.SIGUSR2, {**RUNNING, "restarts": 1}, 1, 2, True, True),
        (signal.SIGUSR2, RUNNING, 0, 0, False, False),
        (signal.SIGUSR2, CANCELLED, 0, None, False, False),
        (signal.SIGTERM, RUNNING, 0, None, False, False),
        (signal.SIGINT, RUNNING, 0, None, False, False),
        (signal.SIGTERM, PREEMPTED, 0, None, True, True),
        (signal.SIGTERM, {**PREEMPTED, "restarts": 3}, 3, 3, False, False),
        (signal.SIGTERM, REQUEUED, 0, None, True, False),
        (signal.SIGTERM, {**REQUEUED, "restarts": 2}, 1, 0, True, False),
        (signal.SIGTERM, {**REQUEUED, "state": "PENDING"}, 0, None, True, False),
        (signal.SIGTERM, CANCELLED, 0, None, False, False),
        (signal.SIGTERM, {**CANCELLED, "restarts": 1}, 1, None, False, False),
        (signal.SIGTERM, {**CANCELLED, "state": "CANCELLED"}, 0, None, False, False),
    ],
)
def test_what_becomes_of_a_stopped_job(
    number: int,
    job: dict[str, object],
    past: int,
    limit: int | None,
    comes_back: bool,
    is_requeued: bool,
    slurm: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = slurm(**job)
    if past:
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(past))
    verdict = come_back(number, max_requeues=limit)
    assert (verdict.comes_back, calls.exists()) == (comes_back, is_requeued), verdict


def test_a_task_of_an_array_requeues_itself_only(slurm: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = slurm(**RUNNING)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "6")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert come_back(signal.SIGUSR2, max_requeues=None).comes_back
    assert calls.read_text() == "requeue 6_2\n"


def test_a_controller_that_is_away_for_a_moment_is_asked_again(slurm: Callable[..., Path]) -> None:
    calls = slurm(**RUNNING, failures=1)
    assert come_back(signal.SIGUSR2, max_requeues=None).comes_back
    assert calls.read_text() == "requeue 7\n"


def test_without_scontrol_a_job_does_not_come_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    verdict = come_back(signal.SIGUSR2, max_requeues=None)
    assert not verdict.comes_back
    assert "scontrol" in verdict.reason


@pytest.mark.parametrize(("code", "calls"), [(0, ""), (1, ""), (143, ""), (140, "requeue 7\n")])
def test_the_end_of_a_batch_script(code: int, calls: str, slurm: Callable[..., Path]) -> None:
    """It exits as srun did; where it has requeued the job it waits until Slurm ends it."""
    file = slurm(**RUNNING)
    script = subprocess.Popen([sys.executable, "-m", "molgen_pretrain.launchers.requeue", str(code), ""])
    try:
        if calls:
            _wait_for(file)
            script.terminate()
            assert script.wait(20) == -signal.SIGTERM
        else:
            assert script.wait(20) == code
    finally:
        script.kill()
    assert (file.read_text() if file.exists() else "") == calls


def _rank(rank: int, tmp_path: Path, *, exit_code: int) -> subprocess.Popen[bytes]:
    """A task of two under srun, whose entry exits with that code."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom molgen_pretrain.launchers.rank import RankTask\n"
        f"RankTask(sys.exit, {exit_code}, None, Path({str(tmp_path / 'outcome.json')!r}))()\n"
    )
    place = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NTASKS": 2, "SLURM_JOB_NUM_NODES": 1}
    env = {**os.environ, "SUBMITIT_EXECUTOR": "slurm", **{name: str(value) for name, value in place.items()}}
    return subprocess.Popen([sys.executable, "-c", program], env=env)


def test_ranks_stay_until_slurm_ends_a_job_that_comes_back(slurm: Callable[..., Path], tmp_path: Path) -> None:
    calls = slurm(**RUNNING)
    ranks = [_rank(rank, tmp_path, exit_code=140) for rank in (0, 1)]
    try:
        _wait_for(calls)
        time.sleep(0.5)
        assert [rank.poll() for rank in ranks] == [None, None]
        for rank in ranks:
            rank.terminate()
        assert [rank.wait(20) for rank in ranks] == [140, 140]
    finally:
        for rank in ranks:
            rank.kill()
    assert calls.read_text() == "requeue 7\n"  # by one rank only
    assert not (tmp_path / "outcome.json").exists()


def test_ranks_leave_at_once_where_the_job_does_not_come_back(slurm: Callable[..., Path], tmp_path: Path) -> None:
    slurm(**CANCELLED)
    ranks = [_rank(rank, tmp_path, exit_code=143) for rank in (0, 1)]
    try:
        assert [rank.wait(20) for rank in ranks] == [143, 143]
    finally:
        for rank in ranks:
            rank.kill()
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert outcome == {"state": "stopped", "detail": "ended by Slurm (COMPLETING)"}


def _wait_for(file: Path) -> None:
    deadline = time.monotonic() + 20
    while not file.exists():
        assert time.monotonic() < deadline, f"{file.name} never came"
        time.sleep(0.05)
