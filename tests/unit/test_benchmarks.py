"""The benchmarks' own tools: options, the report that is kept, rows that are made ready without a GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TABLES = (
    "startup", "steady", "data_wait", "checkpoint_stall", "peak_memory", "plan_memory", "compact_vocabulary",
    "train_step",
)  # fmt: skip


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{path.stem.strip('_')}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def scripts_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Python had been started with a script of that folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize("name", [*TABLES, "gpu"])
def test_every_table_explains_itself(name: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        load(BENCHMARKS / f"{name}.py").main()
    assert end.value.code == 0
    assert "--results" in capsys.readouterr().out


def test_one_command_knows_every_table_and_refuses_others(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    command = load(BENCHMARKS / "__main__.py")
    assert sorted(command.TABLES) == sorted([*TABLES, "gpu"])
    monkeypatch.setattr(sys, "argv", ["benchmarks", "steady", "--", "--steps", "20"])
    assert command.parse_arguments() == (["steady"], ["--steps", "20"])
    monkeypatch.setattr(sys, "argv", ["benchmarks", "unknown"])
    with pytest.raises(SystemExit):
        command.parse_arguments()
    assert "unknown: no such table" in capsys.readouterr().err


def test_a_report_keeps_what_stands_when_a_row_fails(tmp_path: Path) -> None:
    report_module = load(BENCHMARKS / "harness" / "report.py")

    def rows():
        yield "first", 1
        raise RuntimeError

    report = report_module.Report("table", "A title", tmp_path)
    with pytest.raises(RuntimeError):
        report.table(("", "number"), rows())
    [kept] = tmp_path.glob("*/table.md")
    assert kept.parent.name == report_module.machine_slug()
    text = kept.read_text()
    assert text.startswith("# A title\n")
    assert f"Python {sys.version_info.major}." in text
    assert text.endswith("|  | number |\n| --- | ---: |\n| first | 1 |\n")


def test_rows_for_a_gpu_are_made_ready_without_one() -> None:
    """A whole step of each on fake tensors: ours compiled, and the Trainer's model."""
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--dry", "--tiny", "--only", "1", "2"]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    ours, peer = result.stdout.splitlines()
    assert ours.startswith("ours, bf16, compiled, batch 2 x 256: ready, ")
    assert peer.startswith("HF Trainer, bf16, eager, batch 2 x 256: ready, ")
    # The same model: as many parameters.
    assert ours.split("ready, ")[1].split(";")[0] == peer.split("ready, ")[1].split(";")[0]
