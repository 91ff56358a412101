"""Jobs as processes of this machine. Their entry is `exec` and their payload a program: real processes, no training."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path
from threading import Thread

import pytest

from molgen_pretrain.errors import UserError
from molgen_pretrain.launchers.jobs import Job, Outcome, State
from molgen_pretrain.launchers.local import LocalJobs
from molgen_pretrain.signals import Interrupted

# A rank as a training process is one: it notes a signal, saves, and leaves in good order. It saves for longer than it
# takes a repeated signal for an echo.
TRAINING = """
SAVE_SECONDS = 0.7
import sys, time
from pathlib import Path
from molgen_pretrain.signals import StopRequest
with StopRequest() as stop:
    Path("trains").touch()
    deadline = time.monotonic() + 30
    while not stop.signal and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(SAVE_SECONDS)
    Path("saved").touch()
    sys.exit(128 + stop.signal)
"""

LAUNCHER = """
import sys
from pathlib import Path
from molgen_pretrain.launchers.jobs import Job
from molgen_pretrain.launchers.local import LocalJobs
from molgen_pretrain.signals import Interrupted
here = Path()
try:
    jobs = [Job(key, sys.argv[1], here) for key in ("a", "b")]
    LocalJobs().run(jobs, exec, folder=here, on_end=lambda job, outcome: print(job.key, outcome.state.value))
except Interrupted as interrupt:
    sys.exit(128 + interrupt.number)
"""


@pytest.fixture(scope="module", autouse=True)
def shared_server() -> None:
    # The one fork server of this process: other tests' processes must not inherit the signals a launcher blocks in it.
    forkserver.ensure_running()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def job(key: str, program: str = "", after: Sequence[str] = ()) -> Job:
    return Job(key, program, Path("runs") / key, tuple(after))


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path.name}"
        time.sleep(0.01)


def test_a_failed_job_blocks_those_after_it_and_no_others(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    told: dict[str, Outcome] = {}
    jobs = [
        job("trunk", "open('trunk', 'w').close()"),
        job("raises", "raise ValueError('no good')"),
        job("killed", "import os; os.kill(os.getpid(), 9)", after=["trunk"]),
        job("preempted", "import os, time; os.kill(os.getpid(), 15); time.sleep(9)"),
        job("below", after=["raises"]),
        job("below that", after=["trunk", "below"]),
        job("branch", "open('trunk').close()", after=["trunk"]),
    ]
    outcomes = LocalJobs().run(jobs, exec, folder=here, on_end=lambda job, outcome: told.update({job.key: outcome}))
    assert outcomes == told
    assert {key: (outcome.state, outcome.detail) for key, outcome in outcomes.items()} == {
        "trunk": (State.FINISHED, ""),
        "raises": (State.FAILED, "exit code 1"),
        "killed": (State.FAILED, "killed by signal 9"),
        "preempted": (State.STOPPED, "signal 15"),
        "below": (State.BLOCKED, "waits for raises, which is failed"),
        "below that": (State.BLOCKED, "waits for below, which is blocked"),
        "branch": (State.FINISHED, ""),
    }
    assert "2/7 raises: failed: exit code 1, see runs/raises/runtime.log" in caplog.text
    assert "7/7 branch: finished in 0:00:0" in caplog.text


def test_an_order_that_cannot_be_kept_is_refused(here: Path) -> None:
    with pytest.raises(ValueError, match="branch waits for"):
        LocalJobs().run([job("branch", after=["trunk"]), job("trunk")], exec, folder=here)


def test_a_lone_rank_is_as_a_user_would_start_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = """
import atexit, json, multiprocessing, os
atexit.register(lambda: open("left", "w").close())
json.dump([dict(os.environ), multiprocessing.get_start_method()], open("found", "w"))
"""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("MINE", "kept")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    LocalJobs().run([job("a", program)], exec, folder=here)
    environment = {name: value for name, value in os.environ.items() if value != "7"}
    assert json.loads((here / "found").read_text()) == [environment, multiprocessing.get_start_method()]
    assert (here / "left").exists()


def test_ranks_find_each_other(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = """
import os, socket
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
if rank == 0:
    with socket.create_server(where) as server:
        open("listens", "w").close()
        server.settimeout(10)
        assert server.accept()[0].recv(99) == b"1"
else:
    while not os.path.exists("listens"):
        pass
    socket.create_connection(where).sendall(os.environ["LOCAL_RANK"].encode())
open(f"{os.environ['MASTER_PORT']}-{rank}-of-{size}", "w").close()
"""
    monkeypatch.delenv("MASTER_PORT", raising=False)
    assert LocalJobs(processes=2).run([job("a", program)], exec, folder=here)["a"].state is State.FINISHED
    (first,) = (path.name.partition("-")[0] for path in here.glob("*-1-of-2"))
    assert (here / f"{first}-0-of-2").exists()
    (here / "listens").unlink()
    given = str(int(first) - 1)
    monkeypatch.setenv("MASTER_PORT", given)
    LocalJobs(processes=2).run([job("a", program)], exec, folder=here)
    assert (here / f"{given}-1-of-2").exists()


def test_jobs_side_by_side_share_the_machine(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = """
import os, time
print("said by", {0!r}, os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"])
open({0!r}, "w").close()
while not os.path.exists({1!r}):  # only ends if both run at a time
    time.sleep(0.01)
"""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7f,5")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    jobs = [job("a", program.format("a", "b")), job("b", program.format("b", "a"))]
    outcomes = LocalJobs(parallel=2).run(jobs, exec, folder=here / "jobs")
    assert {outcome.state for outcome in outcomes.values()} == {State.FINISHED}
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert (here / "jobs" / "a.log").read_text() == f"said by a 4 {threads}\n"
    assert (here / "jobs" / "b.log").read_text() == f"said by b GPU-7f {threads}\n"


def test_the_users_number_of_threads_stands(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    LocalJobs(parallel=2).run([job("a", "import os; print(os.environ['OMP_NUM_THREADS'])")], exec, folder=here)
    assert (here / "a.log").read_text() == "3\n"


def test_too_few_gpus_for_all_are_an_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with pytest.raises(UserError, match=r"parallel=2.* need 4 GPUs, 3 are visible; at most 1 jobs"):
        LocalJobs(parallel=2, processes=2).run([job("a")], exec, folder=here)


def test_a_failed_rank_ends_its_siblings(here: Path) -> None:
    deaf = """
import os, signal, sys, time
if os.environ["RANK"] == "1":
    while not os.path.exists("deaf"):
        time.sleep(0.01)
    sys.exit(3)
signal.signal(signal.SIGTERM, lambda *_: open("asked", "w").close())
open("deaf", "w").close()
time.sleep(30)
"""
    began = time.monotonic()
    outcome = LocalJobs(processes=2, grace_seconds=0.4).run([job("a", deaf)], exec, folder=here)["a"]
    assert outcome == Outcome(State.FAILED, "rank 1: exit code 3")
    assert (here / "asked").exists()
    assert time.monotonic() - began < 10


def test_a_signal_lets_all_ranks_save_and_starts_nothing_more(here: Path) -> None:
    told: list[tuple[str, State]] = []
    jobs = [job("a", TRAINING), job("b"), job("below", after=["a"])]
    Thread(target=lambda: (wait_for(here / "trains"), os.kill(os.getpid(), signal.SIGTERM))).start()
    with pytest.raises(Interrupted) as interrupt:
        LocalJobs().run(jobs, exec, folder=here, on_end=lambda job, outcome: told.append((job.key, outcome.state)))
    assert interrupt.value.number == signal.SIGTERM
    assert told == [("a", State.STOPPED), ("b", State.STOPPED), ("below", State.BLOCKED)]
    assert (here / "saved").exists()


def test_an_error_of_the_launcher_leaves_nothing_running(here: Path) -> None:
    def fail(job: Job, outcome: Outcome) -> None:
        raise OSError("no report")

    ends_when_both_run = "import os, time\nwhile not os.path.exists('trains'): time.sleep(0.01)"
    with pytest.raises(OSError, match="no report"):
        LocalJobs(parallel=2).run([job("a", TRAINING), job("b", ends_when_both_run)], exec, folder=here, on_end=fail)
    assert (here / "saved").exists()


@pytest.fixture
def launcher(here: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A launcher in a process and a process group of its own, with a job under way."""
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, getattr(request, "param", TRAINING)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for(here / "trains")
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_to_the_whole_group_is_taken_once(launcher: subprocess.Popen[str], here: Path, number: int) -> None:
    """From a terminal or a scheduler. The fork server hears it too, and alone knows how its children ended."""
    os.killpg(launcher.pid, number)
    output, _ = launcher.communicate(timeout=20)
    assert launcher.returncode == 128 + number
    assert output == "a stopped\nb stopped\n"
    assert (here / "saved").exists()


@pytest.mark.parametrize("launcher", [TRAINING.replace("0.7", "20")], indirect=True, ids=["slow to save"])
def test_a_second_signal_ends_all_at_once(launcher: subprocess.Popen[str], here: Path) -> None:
    launcher.send_signal(signal.SIGTERM)
    time.sleep(1)
    launcher.send_signal(signal.SIGTERM)
    output, _ = launcher.communicate(timeout=10)  # until the rank has closed the pipe too
    assert launcher.returncode == 128 + signal.SIGTERM
    assert output == ""
    assert not (here / "saved").exists()


def test_a_job_whose_launcher_was_killed_saves_and_stops(launcher: subprocess.Popen[str], here: Path) -> None:
    launcher.kill()
    output, _ = launcher.communicate(timeout=20)
    assert output == ""
    assert (here / "saved").exists()
