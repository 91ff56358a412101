"""Whole runs through the command line, as a user starts them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

# A model and a run small enough to be over in seconds, with everything on: validation, milestones, retention.
TINY = (
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.num_key_value_heads=1",
    "model.head_dim=16",
    "model.intermediate_size=64",
    "training.steps=40",
    "training.seq_len=128",
    "training.dtype=float32",
    "training.local_batch_size=4",
    "training.global_batch_size=8",
    "scheduler.checkpoints=[20,40]",
    "metrics.log_freq=1",
    "metrics.tensorboard=false",
    "checkpoint.interval=8",
    "validation.freq=20",
    "validation.steps=2",
)


@dataclass
class Run:
    """A run directory as a user finds it."""

    root: Path

    def rows(self, kind: str = "train") -> dict[int, dict]:
        """metrics.jsonl by step; a step that stands twice is a defect."""
        rows = [json.loads(line) for line in (self.root / "metrics.jsonl").read_text().splitlines()]
        rows = [row for row in rows if row["kind"] == kind]
        assert len({row["step"] for row in rows}) == len(rows), "a step was logged twice"
        return {row["step"]: row for row in rows}

    def curve(self, *keys: str) -> dict[int, list]:
        return {step: [row[key] for key in keys] for step, row in self.rows().items()}

    def steps_saved(self) -> list[int]:
        return sorted(int(p.name.partition("-")[2]) for p in (self.root / "checkpoint").glob("step-*"))

    @property
    def log(self) -> str:
        return (self.root / "runtime.log").read_text()

    @property
    def facts(self) -> dict:
        return json.loads((self.root / "run.json").read_text())


class Application:
    """Starts the application in `folder`; runs appear under `folder/runs`."""

    def __init__(self, folder: Path, cache: Path, devices: str = "") -> None:
        self.folder = folder
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "MOLGEN_", "RUN_", "HYDRA_"))},
            "MOLGEN_CACHE": str(cache),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": devices,
        }

    def start(self, overrides: Sequence[str], *, processes: int = 0, **env: str) -> subprocess.Popen[str]:
        module = ["-m", "molgen_pretrain", *overrides]
        command = [sys.executable, *module]
        if processes:
            torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
            command = [sys.executable, *torchrun, *module, "parallelism=fsdp"]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(
        self, *overrides: str, processes: int = 0, code: int = 0, timeout: float = 240, **env: str
    ) -> tuple[str, Run]:
        """Wait for the end; returns the output and the run named `run_name=` (or the only one)."""
        process = self.start(overrides, processes=processes, **env)
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            raise AssertionError(f"no end after {timeout} s:\n{output}") from None
        assert process.returncode == code, f"exit code {process.returncode}, expected {code}:\n{output}"
        return output, self.find(overrides)

    def interrupt(
        self, *overrides: str, after_step: int, by: signal.Signals, processes: int = 0
    ) -> tuple[int, str, Run]:
        """Send a signal to the process group once `after_step` is in metrics.jsonl."""
        process = self.start(overrides, processes=processes)
        run = self.find(overrides)
        deadline = time.monotonic() + 120
        while _last_step(run.root / "metrics.jsonl") < after_step:
            if process.poll() is not None or time.monotonic() > deadline:
                os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
                raise AssertionError(f"ended or stuck before step {after_step}:\n{process.communicate()[0]}")
            time.sleep(0.002)
        os.killpg(process.pid, by)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output, run

    def find(self, overrides: Sequence[str]) -> Run:
        names = [o.partition("=")[2] for o in overrides if o.startswith("run_name=")]
        found = sorted((self.folder / "runs").glob("*")) if not names else [self.folder / "runs" / names[0]]
        return Run(found[0]) if found else Run(self.folder / "runs" / "none")


def _last_step(metrics: Path) -> int:
    try:
        lines = metrics.read_text().splitlines()
        return json.loads(lines[-1])["step"] if lines else 0
    except (FileNotFoundError, json.JSONDecodeError):
        return 0


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    return TINY


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One data cache for all runs, as one user has it."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def app(tmp_path: Path, cache: Path) -> Application:
    return Application(tmp_path, cache)


@pytest.fixture(scope="session")
def app_factory(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Callable[[str], Application]:
    return lambda name: Application(tmp_path_factory.mktemp(name), cache)
