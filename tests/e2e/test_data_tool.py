"""The data tool through the command line, beside a run with the same overrides and the same cache."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def tool(tmp_path: Path, cache: Path):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "molgen_pretrain.tools.data", *arguments]
        env = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "RUN_", "HYDRA_"))}
        env["MOLGEN_CACHE"] = str(cache)
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    return run


def test_the_tool_shows_what_the_run_trains_on(tool, whole, tiny, tmp_path: Path) -> None:
    built = tool("build", *tiny)
    assert built.returncode == 0, built.stderr
    assert built.stdout.count("stands already") == 2  # the run has made both
    preview = tool("preview", *tiny, "-n", "1")
    (text,) = [line for line in preview.stdout.splitlines() if line.startswith("[SMILES]")]
    (logged,) = re.findall("first sequence: (.*)", whole[1].log)
    assert logged.startswith(text.removesuffix("  (label ignored)"))
    stats = tool("stats", *tiny, "--json", "stats.json")
    assert stats.returncode == 0, stats.stderr
    (packing,) = json.loads((tmp_path / "stats.json").read_text())["together"]["packing"]
    row = whole[1].rows()[40]
    assert row["epoch"] == pytest.approx(40 / packing["steps_per_epoch"]["8"], rel=1e-3)
    assert f"320 sequences, {row['epoch']:.2f} epochs" in stats.stdout


def test_a_mistake_has_the_message_of_the_run(tool, tmp_path: Path) -> None:
    result = tool("stats", "data.train_path=nowhere")
    assert result.returncode == 1
    assert result.stderr.startswith("error: data.train_path=nowhere: no such file or folder")
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_help(tool) -> None:
    assert "preview" in tool("--help").stdout
    assert "--png FILE" in tool("stats", "--help").stdout
