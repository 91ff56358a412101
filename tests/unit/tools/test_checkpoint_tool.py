"""The checkpoint tool, in process: what it lists, verifies, shows and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from molgen_pretrain.checkpoint.checkpointer import Checkpointer
from molgen_pretrain.tools.checkpoint import main

STATE = {"progress": {"step": 0, "tokens": 12345678, "position": {"epoch": 2}}, "schedule": {"checkpoints": [2, 9]}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with steps 2 (milestone), 3, 4 and 5 (not finite), whose config keeps one."""
    (tmp_path / "config.yaml").write_text("checkpoint:\n  keep_latest_k: 1\n")
    model = torch.nn.ModuleDict(
        {"layers": torch.nn.ModuleList(torch.nn.Linear(4, 2) for _ in range(3)), "head": torch.nn.Linear(4, 8)}
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    checkpointer = Checkpointer(tmp_path / "checkpoint", keep_latest_k=0, milestones=[2])
    for step in (2, 3, 4, 5):
        if step == 5:
            model["head"].weight.data[0, 0] = float("nan")
        checkpointer.save(step, model=model, optimizer=optimizer, state=STATE)
    return tmp_path


Tool = Callable[..., str]


@pytest.fixture
def tool(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Tool:
    for name in ("RANK", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)

    def call(*words: object, code: int = 0) -> str:
        assert main([str(word) for word in words]) == code
        captured = capsys.readouterr()
        return captured.out + captured.err

    return call


def rows(text: str) -> dict[str, list[str]]:
    """Step -> the cells of its row from the size on."""
    cells = [[cell for cell in line.split("  ") if cell] for line in text.splitlines() if line.startswith("     ")]
    return {row[0].strip(): [cell.strip() for cell in row[2:]] for row in cells if row[0].strip().isdecimal()}


def damage(run: Path) -> None:
    with open(run / "checkpoint/step-00000003/rank-00000.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    (run / "checkpoint/step-00000004/state.json").unlink()
    (run / "checkpoint/step-00000005/manifest.json").write_text("{")


def test_list_says_what_there_is_and_why_it_is_kept(run: Path, tool: Tool) -> None:
    (run / "checkpoint/.step-00000006.tmp-0123abcd").mkdir()
    text = tool("list", run)
    size = sum(path.stat().st_size for path in (run / "checkpoint/step-00000002").iterdir() if path.stem != "manifest")
    found = rows(text)
    assert found["2"] == [f"{size / 1000:.3g} kB", "1", "yes", "yes", "milestone", "all there"]
    assert found["3"][2:] == ["yes", "-", "all there"]
    assert found["4"][2:] == ["yes", "last finite", "all there"]
    assert found["5"][2:] == ["NO", "newest", "all there"]
    assert "checkpoint.keep_latest_k=1" in text
    assert "1 unfinished" in text
    assert rows(tool("list", run / "checkpoint")) == found


def test_list_sees_sizes_and_verify_every_byte(run: Path, tool: Tool) -> None:
    assert "4 checkpoints, 0 damaged" in tool("verify", run)
    damage(run)
    listed = tool("list", run)
    assert [row[-1] for row in rows(listed).values()] == ["all there", "all there", "DAMAGED", "DAMAGED"]
    assert "step-00000004/state.json: No such file" in listed
    assert "step-00000005/manifest.json: " in listed
    verified = tool("verify", run, code=1)
    for line in ("2: sound", "3: DAMAGED", "rank-00000.safetensors: its checksum", "state.json: No such", "3 damaged"):
        assert line in verified
    assert "1 checkpoints, 0 damaged" in tool("verify", run / "checkpoint/step-00000002")
    assert "1 damaged" in tool("verify", run / "checkpoint/step-00000003", code=1)


def test_show_tells_facts_state_and_tensors(run: Path, tool: Tool) -> None:
    text = tool("show", run / "checkpoint/step-00000002", "--tensors")
    for part in (
        "step 2",
        f"torch {torch.__version__}",
        "a milestone",
        "all tensors finite",
        "tokens: 12,345,678",
        "checkpoints: [2, 9]",
        "lr=0.5, momentum=0.9",
        "model: 70 parameters in 8 tensors, 280 B",
        "optimizer state: 0 numbers",
        "0 ... 2 (3 alike, each:)  weight [2, 4] F32 32 B; bias [2] F32 8 B",
        "head  weight [8, 4] F32 128 B",
    ):
        assert part in text, part
    newest = tool("show", run)
    assert "step-00000005" in newest
    assert "NaN or infinity in its tensors" in newest
    assert "head" not in newest.partition("parameter groups")[2]


def test_mistakes_and_damage_are_messages(run: Path, tool: Tool) -> None:
    damage(run)
    assert "error: " in tool("show", run / "checkpoint/step-00000004", code=1)
    assert "state.json: No such file" in tool("show", run / "checkpoint/step-00000004", code=1)
    for command in ("list", "verify", "show"):
        assert "no such folder; give a run's directory" in tool(command, run / "nowhere", code=1)
        (run / "empty").mkdir(exist_ok=True)
        assert "no checkpoint has been committed here" in tool(command, run / "empty", code=1)


def test_a_folder_that_left_its_run_is_listed_too(run: Path, tool: Tool) -> None:
    (run / "checkpoint").rename(run / "copied")
    (run / "config.yaml").unlink()
    text = tool("list", run / "copied")
    assert "no config.yaml" in text
    assert len(rows(text)) == 4


def test_the_tool_needs_no_torch(run: Path) -> None:
    script = (
        "import json, sys; from molgen_pretrain.tools.checkpoint import main; "
        "codes = [main([c, sys.argv[1]]) for c in ('list', 'verify', 'show')]; "
        "print(json.dumps([codes, [m for m in ('torch', 'hydra', 'transformers') if m in sys.modules]]))"
    )
    result = subprocess.run([sys.executable, "-c", script, str(run)], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout.splitlines()[-1]) == [[0, 0, 0], []]
