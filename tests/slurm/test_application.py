"""Whole sweeps on a real Slurm, through the command line, and what a cluster does to them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from molgen_pretrain.launchers.slurm_records import JobFolder, JobRecord
from molgen_pretrain.tools.jobs import main as jobs_tool

pytestmark = pytest.mark.slurm

WAIT_SECONDS = 170.0
# Small jobs that Slurm starts at once, and a launcher that looks often.
SMALL = (
    "hydra.launcher.gpus_per_node=null",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.poll_seconds=1",
    "hydra.launcher.timeout_min=10",
)
STEPS = 160
LONG = (f"training.steps={STEPS}", f"scheduler.checkpoints=[{STEPS}]", "checkpoint.interval=1000")
SHORT = (
    "training.steps=20",
    "training.local_batch_size=2",
    "scheduler.checkpoints=[]",
    "scheduler.checkpoints_frac=[1.0]",
    "validation.enable=false",
)
DECAYS = (*SHORT, "scheduler.decay_frac=0.2,0.4,0.6")
TWO_BY_TWO = ("hydra.launcher.nodes=2", "hydra.launcher.tasks_per_node=2", "hydra.launcher.mem_gb=null")


class User:
    """Somebody on a login node, with commands under way."""

    def __init__(self, cluster: Any, app: Any, tiny: tuple[str, ...]) -> None:
        self.cluster = cluster
        self.app = app
        self.app.env = {**app.env, **cluster.env}
        self.tiny = tiny

    def start(
        self, name: str, *overrides: str, launcher: str = "slurm", flags: Sequence[str] = ()
    ) -> subprocess.Popen[str]:
        command = ["-m", *flags, f"hydra/launcher={launcher}", *self.tiny, *SMALL, *overrides, f"run_name={name}"]
        return self.app.start(command)

    def run(self, name: str, *overrides: str, launcher: str = "slurm", flags: Sequence[str] = ()) -> Ended:
        """A launcher, to its end."""
        process = self.start(name, *overrides, launcher=launcher, flags=flags)
        output, _ = process.communicate(timeout=WAIT_SECONDS)
        return Ended(process.returncode, output, self.folder(name))

    def meet(self, name: str, act: Callable[[User, str], None], *overrides: str) -> Ended:
        """A run that something happens to when it has done 20 steps."""
        process = self.start(name, *LONG, *overrides)
        metrics = self.folder(name) / "run" / "metrics.jsonl"
        _until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 20, f"no step 20 of {name}")
        act(self, self.job(name))
        output, _ = process.communicate(timeout=WAIT_SECONDS)
        return Ended(process.returncode, output, self.folder(name))

    def alone(self, name: str, *overrides: str, processes: int = 0) -> Ended:
        """A run without Slurm."""
        output, run = self.app.run(*self.tiny, *overrides, f"run_name={name}", processes=processes)
        return Ended(0, output, run.root)

    def folder(self, name: str) -> Path:
        return self.app.folder / "runs" / name

    def job(self, name: str, key: str = "run") -> str:
        """The number of a job, once it is submitted."""
        folder = self.folder(name)
        _until(lambda: key in records(folder), f"{name} was not submitted")
        return records(folder)[key].id


@dataclass(frozen=True)
class Ended:
    """What is left of a command."""

    code: int
    output: str
    folder: Path

    def curve(self, point: str = "") -> list[tuple[int, float]]:
        """Every training step with its loss; one that is missing or stands twice would show."""
        rows = [json.loads(line) for line in (self.folder / point / "metrics.jsonl").read_text().splitlines()]
        return [(row["step"], row["loss"]) for row in rows if row["kind"] == "train"]

    def weights(self, point: str = "") -> dict[str, Any]:
        (file,) = (self.folder / point).glob("hf/*/model.safetensors")
        return load_file(file)

    def facts(self, point: str = "") -> dict[str, Any]:
        return json.loads((self.folder / point / "run.json").read_text())


def records(sweep: Path) -> dict[str, JobRecord]:
    """What the launcher has noted of its jobs."""
    return JobFolder(sweep / "jobs").read()[1]


def process_of(job: str, rank: int) -> int:
    """The process that trains as a rank of a job."""
    wanted = {f"SLURM_JOB_ID={job}".encode(), f"SLURM_PROCID={rank}".encode()}
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment, command = (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        is_rank = b"submitit.core._submit" in command and not command.startswith(b"srun")
        if is_rank and wanted <= set(environment.split(b"\0")):
            parents[int(entry.name)] = parent
    (process,) = [each for each, parent in parents.items() if parent not in parents]  # the others are its data workers
    return process


def _until(condition: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.05)


def by_usr2(user: User, job: str) -> None:
    user.cluster.run("scancel", "--signal=USR2", job)


def by_time_limit(user: User, job: str) -> None:
    """Frozen until Slurm sends the signal: it knows no limits below a minute.

    On a slow machine it may be sent without that, and the process be gone.
    """
    with contextlib.suppress(OSError, ValueError):
        process = process_of(job, 0)
        os.kill(process, signal.SIGSTOP)
        _until(lambda: _pending(process, signal.SIGUSR2), "no signal before the time limit")
        os.kill(process, signal.SIGCONT)


def _pending(process: int, number: int) -> bool:
    """Whether a signal waits for a frozen process."""
    status = Path(f"/proc/{process}/status").read_text()
    masks = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigPnd", "ShdPnd"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


def by_preemption(user: User, job: str) -> None:
    user.cluster.run("sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")


def by_requeue(user: User, job: str) -> None:
    user.cluster.run("scontrol", "requeue", job)


def by_killing_rank_1(user: User, job: str) -> None:
    os.kill(process_of(job, 1), signal.SIGKILL)


def by_scancel(user: User, job: str) -> None:
    user.cluster.run("scancel", job)


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


@pytest.fixture(scope="module")
def user(cluster: Any, app_factory: Any, tiny: tuple[str, ...]) -> User:
    return User(cluster, app_factory("login"), tiny)


@pytest.fixture(scope="module")
def ended(user: User, pool: ThreadPoolExecutor) -> dict[str, Future[Ended]]:
    """All at once, the slowest first."""
    limit = ("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=20")
    two = ("hydra.launcher.nodes=2", "parallelism=fsdp")
    return {
        "limit": pool.submit(user.meet, "limit", by_time_limit, *limit),
        "preempted": pool.submit(user.meet, "preempted", by_preemption, "hydra.launcher.partition=low"),
        "requeued": pool.submit(user.meet, "requeued", by_requeue),
        "usr2": pool.submit(user.meet, "usr2", by_usr2, *two),
        "cancelled": pool.submit(user.meet, "cancelled", by_scancel),
        "trunk": pool.submit(user.run, "trunk", *DECAYS, "hydra/sweeper=trunk"),
        "array": pool.submit(user.run, "array", *DECAYS),
        "ranks": pool.submit(user.run, "ranks", *SHORT, *TWO_BY_TWO, "parallelism=fsdp", launcher="slurm_nodes"),
        "crash": pool.submit(user.meet, "crash", by_killing_rank_1, *two),
        "alone": pool.submit(user.alone, "alone", *LONG),
        "alone on two": pool.submit(user.alone, "alone-on-two", *LONG, processes=2),
        "short alone": pool.submit(user.alone, "short-alone", *SHORT),
    }


@pytest.mark.parametrize("name", ["usr2", "preempted", "requeued", "limit"])
def test_a_job_that_comes_back_goes_on_at_the_exact_step(
    name: str, user: User, ended: dict[str, Future[Ended]]
) -> None:
    """In the same run directory, with the losses and weights of a run that nothing happened to."""
    run, alone = ended[name].result(), ended["alone on two" if name == "usr2" else "alone"].result()
    assert run.code == 0, run.output
    assert int(user.cluster.show(user.job(name))["Restarts"]) >= 1
    assert [step for step, _ in run.curve("run")] == list(range(1, STEPS + 1))
    assert run.curve("run") == alone.curve()
    ours, theirs = run.weights("run"), alone.weights()
    assert all(ours[key].equal(theirs[key]) for key in theirs)
    log = (run.folder / "run" / "runtime.log").read_text()
    assert log.count("start: from scratch") == 1
    assert "start: after step" in log


def test_a_cancelled_job_stays_cancelled(user: User, ended: dict[str, Future[Ended]]) -> None:
    run = ended["cancelled"].result()
    assert run.code == 1
    assert "run: " in run.output
    fields = user.cluster.show(user.job("cancelled"))
    assert (fields["JobState"], fields["Restarts"]) == ("CANCELLED", "0")
    assert run.facts("run")["status"] == "stopped"
    (last,) = [int(path.name.split("-")[1]) for path in (run.folder / "run").glob("checkpoint/step-*")]
    assert last == run.curve("run")[-1][0]


def test_a_sweep_is_one_array(user: User, ended: dict[str, Future[Ended]]) -> None:
    run = ended["array"].result()
    assert run.code == 0, run.output
    ids = {record.id for record in records(run.folder).values()}
    assert len({each.split("_")[0] for each in ids}) == 1
    assert len(ids) == 3
    assert "3 of 3" in (run.folder / "report.md").read_text()


def test_a_trunk_on_slurm_is_a_job_that_its_branches_wait_for(user: User, ended: dict[str, Future[Ended]]) -> None:
    run, independent = ended["trunk"].result(), ended["array"].result()
    assert run.code == 0, run.output
    assert "3 points: 40 steps planned, 60 as independent runs" in run.output
    jobs = records(run.folder)
    assert set(jobs) == {"steps-0-8", "steps-8-12", *(f"decay_frac={frac}" for frac in ("0.2", "0.4", "0.6"))}
    assert jobs["decay_frac=0.2"].after == jobs["decay_frac=0.4"].after == ("steps-8-12",)
    for point in ("decay_frac=0.2", "decay_frac=0.4", "decay_frac=0.6"):
        ours, theirs = run.weights(point), independent.weights(point)
        assert all(ours[key].equal(theirs[key]) for key in theirs)
        assert run.curve(point) == independent.curve(point)


def test_two_nodes_with_two_tasks_each_are_one_run(ended: dict[str, Future[Ended]]) -> None:
    run, alone = ended["ranks"].result(), ended["short alone"].result()
    assert run.code == 0, run.output
    assert run.facts("run")["world_size"] == 4
    assert [path.name for path in run.folder.iterdir() if (path / "run.json").exists()] == ["run"]
    assert dict(run.curve("run")) == pytest.approx(dict(alone.curve()), rel=1e-5)
    (record,) = records(run.folder).values()
    assert len(record.logs) == 4


def test_a_rank_that_dies_fails_the_job_and_the_launcher(user: User, ended: dict[str, Future[Ended]]) -> None:
    run = ended["crash"].result()
    assert run.code == 1
    assert "error: run: failed (" in run.output
    assert user.cluster.show(user.job("crash"))["JobState"] == "FAILED"


def test_a_detached_sweep_is_frozen_followed_and_done_without_its_launcher(
    user: User, ended: dict[str, Future[Ended]], capsys: pytest.CaptureFixture[str]
) -> None:
    """What was edited while the jobs wait does not count; the report is made by the last of them."""
    recipe = user.app.folder / "mine" / "experiment" / "mine.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text("# @package _global_\noptimizer:\n  lr: 1e-3\n")
    later = "+hydra.launcher.additional_parameters.begin=now+8"
    began = time.monotonic()
    run = user.run(
        "detached", "+experiment=mine", *SHORT, "training.seed=1,2", "hydra.launcher.detach=true", later,
        flags=("--config-dir", "mine"),
    )  # fmt: skip
    assert run.code == 0, run.output
    assert time.monotonic() - began < 20  # 3 where nothing else runs
    assert "molgen_pretrain.tools.jobs follow" in run.output
    recipe.write_text("# @package _global_\noptimizer:\n  lr: 2e-3\n")
    assert not (run.folder / "seed=1").exists()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in user.cluster.env.items():
            patch.setenv(name, value)
        assert jobs_tool(["follow", str(run.folder), "--poll-seconds", "1"]) in (None, 0)
    assert "seed=2" in capsys.readouterr().out
    assert "lr: 0.001" in (run.folder / "seed=2" / "config.yaml").read_text()
    assert "2 of 2" in (run.folder / "report.md").read_text()
