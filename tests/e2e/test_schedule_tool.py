"""The preview through the command line shows what the run then does."""

import csv
import os
import subprocess
import sys
from pathlib import Path


def preview(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "molgen_pretrain.tools.schedule", *arguments]
    env = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "RUN_", "HYDRA_"))}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_preview_and_run_agree(tmp_path: Path, whole, tiny) -> None:
    result = preview(tmp_path, *tiny, "--csv", "steps.csv")
    assert result.returncode == 0, result.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"schedule.png", "steps.csv"}
    planned = {int(row["step"]): row for row in csv.DictReader((tmp_path / "steps.csv").open())}
    rows = whole[1].rows()
    assert planned.keys() == rows.keys()
    for step, row in rows.items():
        shown = planned[step]
        assert (float(shown["lr"]), float(shown["weight_decay"])) == (row["lr"], row["weight_decay"])
        assert shown["phase"] == row["phase"]


def test_a_mistake_has_the_message_of_the_run(tmp_path: Path) -> None:
    result = preview(tmp_path, "scheduler.checkpoints=[9999]")
    assert result.returncode == 1
    assert "error: scheduler.checkpoints=[9999]: [9999] beyond the run's 400 steps" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_help(tmp_path: Path) -> None:
    assert "--compare OVERRIDES" in preview(tmp_path, "--help").stdout
