"""Runs of the application as a user starts them, and what their metrics say."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.report import usable_cores
from molgen_pretrain.metrics.rows import Row, read_rows

# Training and nothing beside it.
TRAINING_ONLY = (
    "validation.enable=false",
    "checkpoint.enable=false",
    "checkpoint.hf_export=never",
    "metrics.tensorboard=false",
    "metrics.progress_bar=false",
)


@dataclass(frozen=True)
class Workplace:
    """Where runs and data caches go, and what every process of a benchmark is given alike."""

    folder: Path
    threads: int | None = None  # OMP_NUM_THREADS; None: every usable core
    device: str = "cpu"
    variables: Mapping[str, str] = field(default_factory=dict)  # more of the environment

    def environment(self) -> dict[str, str]:
        places = {"MOLGEN_RUNS": str(self.folder / "runs"), "MOLGEN_CACHE": str(self.folder / "cache")}
        hidden = {} if self.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
        threads = str(self.threads or usable_cores())
        return {**os.environ, **places, **hidden, "OMP_NUM_THREADS": threads, **self.variables}

    def run_folder(self, name: str) -> Path:
        return self.folder / "runs" / name

    def train(self, name: str, overrides: Sequence[str], *, timeout_seconds: float | None = None) -> list[Row]:
        """The train rows of a run in a process of its own. Raises what `finished` does."""
        finished(application(f"run_name={name}", *overrides), self.environment(), timeout_seconds)
        return [row for row in read_rows(self.run_folder(name) / "metrics.jsonl") if row["kind"] == "train"]


def application(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "molgen_pretrain", *overrides]


def finished(command: Sequence[str], environment: Mapping[str, str], timeout_seconds: float | None = None) -> str:
    """What a process that succeeded has printed. Raises RuntimeError with its words where it failed."""
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=timeout_seconds
    )
    if result.returncode:
        words = (result.stdout + result.stderr)[-4000:]
        raise RuntimeError(f"{' '.join(command)[:500]}\nended with {result.returncode}:\n{words}")
    return result.stdout
