"""launch/: the commands that the scripts come down to. What slurm.sbatch does is tested on a Slurm (tests/slurm)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[3] / "launch"


def _run(script: str, *arguments: str, **env: str) -> tuple[int, list[str], str]:
    """Exit code, the arguments that Python would get, and the errors."""
    names = ("NGPU_PER_NODE", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    command = [LAUNCH / script, *arguments]
    done = subprocess.run(command, env={**kept, "MOLGEN_PYTHON": "echo", **env}, capture_output=True, text=True)
    return done.returncode, done.stdout.split(), done.stderr


APPLICATION = ["-m", "molgen_pretrain", "optimizer.lr=1e-3", "seed=1"]


@pytest.mark.parametrize(
    ("env", "meet"),
    [
        ({}, ["--standalone"]),
        ({"MASTER_PORT": "29999"}, ["--nnodes=1", "--master-addr=127.0.0.1", "--master-port=29999"]),
        (
            {"NNODES": "4", "NODE_RANK": "2", "MASTER_ADDR": "gpu01", "MASTER_PORT": "29999"},
            ["--nnodes=4", "--node-rank=2", "--master-addr=gpu01", "--master-port=29999"],
        ),
    ],
)
def test_torchrun_meets_where_the_environment_says(env: dict[str, str], meet: list[str]) -> None:
    code, words, errors = _run("torchrun.sh", "optimizer.lr=1e-3", "seed=1", NGPU_PER_NODE="8", **env)
    assert code == 0, errors
    assert words == ["-m", "torch.distributed.run", *meet, "--nproc-per-node=8", *APPLICATION]


def test_torchrun_on_several_nodes_says_what_is_missing() -> None:
    code, words, errors = _run("torchrun.sh", NNODES="2", MASTER_ADDR="gpu01", MASTER_PORT="29999")
    assert (code, words) == (1, [])
    assert "NODE_RANK (0 to 1)" in errors


def test_sweeps_by_name_take_further_overrides() -> None:
    code, words, errors = _run("sweep.sh", "decay_frac", "sweep.plan_only=true")
    assert code == 0, errors
    assert words[:3] == ["-m", "molgen_pretrain", "--multirun"]
    assert words[-1] == "sweep.plan_only=true"
    code, words, errors = _run("sweep.sh", "no_such")
    assert (code, words) == (1, [])
    assert "decay_frac" in errors
