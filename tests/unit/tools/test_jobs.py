"""`tools.jobs` on what a launcher left behind; with a real Slurm: tests/slurm."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from molgen_pretrain.launchers.slurm_records import JobFolder, JobRecord
from molgen_pretrain.tools.jobs import main

PROCESS = """
import pathlib, sys, time
log = pathlib.Path(sys.argv[1]) / "run_0_log.out"
for step in range(600):
    log.open("a").write(f"step {step}\\n")
    time.sleep(0.05)
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Path]:
    """A finished trunk, a point that failed, and one that runs."""
    folder = JobFolder(tmp_path / "jobs")
    folder.root.mkdir()
    running = subprocess.Popen([sys.executable, "-c", PROCESS, str(folder.root)])
    records = [
        JobRecord(key, number, str(tmp_path / key), None, (f"{key}_0_log.out",), (), "2026-11-20T17:00:00")
        for key, number in (("steps-0-900", "3999999"), ("bad", "3999998"), ("run", str(running.pid)))
    ]
    folder.add("local", records)
    for key, state in (("steps-0-900", "finished"), ("bad", "failed")):
        folder.outcome(key).write_text(json.dumps({"state": state, "detail": "rank 0: exit code 1"}))
    (folder.root / "bad_0_log.out").write_text("".join(f"line {n}\n" for n in range(40)) + "error: no data\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"kind":"train","step":412,"loss":1.5}\n{"kind":"train","st')
    (tmp_path / "sweep.json").write_text(json.dumps({"edges": [{"key": "run", "start": 0, "end": 1000}]}))
    yield tmp_path
    running.kill()
    running.wait()


def test_list(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", str(sweep)]) == 0
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line for line in printed.splitlines() if line.strip()}
    assert "finished" in rows["steps-0-900"]
    assert "failed" in rows["bad"]
    assert "running" in rows["run"]
    assert "412 of 1,000" in rows["run"]
    assert str(sweep / "run") in rows["run"]
    assert "bad: rank 0: exit code 1" in printed


def test_follow_shows_the_end_of_a_log_and_fails_with_the_job(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["follow", str(sweep / "jobs"), "--key", "bad"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "[bad] error: no data" in lines
    assert sum(line.startswith("[bad]") for line in lines) == 10
    assert main(["follow", str(sweep), "--key", "steps-0-900"]) == 0


def test_cancel_ends_one_job_while_it_is_followed(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "molgen_pretrain.tools.jobs", "follow", str(sweep), "--poll-seconds", "0.1"]
    follower = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert follower.stdout is not None
    for line in follower.stdout:
        if line.startswith("[run] step"):
            break
    assert main(["cancel", str(sweep), "--key", "run"]) == 0
    assert "cancelled: run" in capsys.readouterr().out
    rest = follower.stdout.read()
    assert follower.wait(20) == 1
    assert "run: failed" in rest, "this process leaves no word, unlike a rank"
    assert "[bad]" not in rest
    assert main(["cancel", str(sweep)]) == 0
    assert "all have ended" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "nowhere"], "nowhere: no jobs.json"),
        (["list", ".", "--key", "runn"], "--key runn: no such job; there are steps-0-900, bad, run"),
        (["follow", ".", "--key", "bad", "--rank", "4"], "--rank 4: bad has ranks 0 to 0"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(sweep)
    started = time.monotonic()
    assert main(arguments) == 1
    assert message in capsys.readouterr().err
    assert time.monotonic() - started < 5
