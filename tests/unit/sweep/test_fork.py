"""A run that branches off another: what it takes over, what it leaves alone, and kills on the way."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from molgen_pretrain.checkpoint.layout import CheckpointLayout
from molgen_pretrain.errors import UserError
from molgen_pretrain.run_directory import RunDirectory
from molgen_pretrain.sweep.fork import fork_run

MANIFEST = "manifest.json"
SHARD = "rank-00000.safetensors"


@pytest.fixture
def parent(tmp_path: Path) -> RunDirectory:
    """Trained for 40 steps, killed while it saved step 48 and wrote a row."""
    run = RunDirectory(tmp_path / "parent")
    layout = CheckpointLayout(run.checkpoints)
    for step in (8, 16, 24, 32, 40):
        layout.folder(step).mkdir(parents=True)
        for name in (SHARD, MANIFEST):
            (layout.folder(step) / name).write_text(f"{name} of step {step}")
    layout.folder(48).mkdir()
    (layout.temporary_folder(48)).mkdir()
    (layout.folder(48) / SHARD).write_text("half")
    for step in (8, 40):
        run.hf_export(step).mkdir(parents=True)
        (run.hf_export(step) / "model.safetensors").write_text(f"model of step {step}")
    rows = [{"kind": kind, "step": step, "loss": 1 / step} for step in range(1, 45) for kind in ("train", "validation")]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "tr')
    run.tensorboard.mkdir()
    (run.tensorboard / "events.out.tfevents.1").write_text("events")
    for path in (run.config, run.facts, run.log(0)):
        path.write_text("the parent's own")
    return run


@pytest.fixture
def child(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "sweep" / "child")


def contents(root: Path) -> dict[str, str]:
    """Every file with its text; the lock is nobody's."""
    return {str(p.relative_to(root)): p.read_text() for p in root.rglob("*") if p.is_file() and p.name != ".lock"}


def steps_of_rows(run: RunDirectory) -> list[int]:
    return [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()]


def test_the_child_is_the_parent_stopped_earlier(parent: RunDirectory, child: RunDirectory) -> None:
    before = contents(parent.root)
    fork_run(parent, 24, child)
    taken = contents(child.root)
    rows = taken.pop("metrics.jsonl").splitlines()
    assert rows == before["metrics.jsonl"].splitlines()[:48]
    expected = {f"checkpoint/step-{step:08d}/{name}" for step in (8, 16, 24) for name in (SHARD, MANIFEST)}
    expected |= {"hf/step-00000008/model.safetensors", "tb/events.out.tfevents.1"}
    assert taken == {name: before[name] for name in expected}
    assert contents(parent.root) == before
    assert not [path for path in child.root.rglob(".*") if path.name != ".lock"]
    for name in (f"checkpoint/step-00000024/{SHARD}", "hf/step-00000008/model.safetensors"):
        assert os.path.samefile(parent.root / name, child.root / name), "weights take no room twice"


def test_what_the_child_deletes_the_parent_keeps(parent: RunDirectory, child: RunDirectory) -> None:
    before = contents(parent.root)
    fork_run(parent, 24, child)
    shutil.rmtree(CheckpointLayout(child.checkpoints).folder(8))
    with child.metrics.open("a") as rows:
        rows.write('{"kind": "train", "step": 25}\n')
    assert contents(parent.root) == before


def test_where_links_are_impossible_files_are_copied(
    parent: RunDirectory, child: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", refuse)
    fork_run(parent, 40, child)
    original = CheckpointLayout(parent.checkpoints).folder(40) / SHARD
    copy = CheckpointLayout(child.checkpoints).folder(40) / SHARD
    assert copy.read_text() == original.read_text()
    assert not copy.samefile(original)


@pytest.mark.parametrize("step", [20, 48])
def test_a_step_that_is_not_committed_is_refused(parent: RunDirectory, child: RunDirectory, step: int) -> None:
    with pytest.raises(UserError, match=rf"no committed checkpoint of step {step} .*there: 8, 16, 24, 32, 40"):
        fork_run(parent, step, child)
    assert not child.root.exists()


def test_a_child_that_went_on_is_left_alone(parent: RunDirectory, child: RunDirectory) -> None:
    fork_run(parent, 24, child)
    layout = CheckpointLayout(child.checkpoints)
    shutil.copytree(layout.folder(24), layout.folder(30))
    shutil.rmtree(layout.folder(24))
    child.metrics.write_text('{"kind": "train", "step": 30}\n')
    before = contents(child.root)
    fork_run(parent, 24, child)
    assert contents(child.root) == before


def test_a_start_that_failed_early_loses_nothing(parent: RunDirectory, child: RunDirectory) -> None:
    child.root.mkdir(parents=True)
    own = {"runtime.log": "error", "run.json": "{}", "config.yaml": "a: 1", "metrics.jsonl": '{"step": 1}\n'}
    for name, text in own.items():
        (child.root / name).write_text(text)
    fork_run(parent, 24, child)
    now = contents(child.root)
    assert {name: now[name] for name in own if name != "metrics.jsonl"} == {
        name: text for name, text in own.items() if name != "metrics.jsonl"
    }
    assert steps_of_rows(child)[-1] == 24
    assert CheckpointLayout(child.checkpoints).committed_steps() == [8, 16, 24]


def in_a_process(action: Callable[[], None]) -> int:
    """The number of a forked process that does it; its exit code is 1 where that raises."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed(action: Callable[[], None], after: int) -> None:
    """`action`, in a process that ends without a word (exit code 9) after so many changes of folders."""
    left = after

    def count(event: str, arguments: Any) -> None:
        nonlocal left
        if event in ("os.mkdir", "os.link", "os.rename", "os.rmdir"):
            left -= 1
            if left < 0:
                os._exit(9)

    sys.addaudithook(count)
    action()


def test_a_kill_at_any_moment_leaves_a_shorter_run_or_the_whole(parent: RunDirectory, child: RunDirectory) -> None:
    def fork() -> None:
        fork_run(parent, 24, child)

    fork()
    whole = contents(child.root)
    layout = CheckpointLayout(child.checkpoints)
    seen = set()
    for changes in range(100):
        shutil.rmtree(child.root)
        code = exit_code(in_a_process(partial(killed, fork, changes)))
        steps = layout.committed_steps()
        seen.add(len(steps))
        assert not steps or steps_of_rows(child)[-1] == 24, "rows come before checkpoints"
        fork()
        assert contents(child.root) == whole
        assert not [path for path in child.root.rglob(".*") if path.name != ".lock"]
        if code == 0:
            break
    assert (code, seen) == (0, {0, 1, 2, 3})


def test_forks_at_the_same_time_end_in_one_whole_child(parent: RunDirectory, child: RunDirectory) -> None:
    processes = [in_a_process(lambda: fork_run(parent, 40, child)) for _ in range(4)]
    assert [exit_code(pid) for pid in processes] == [0] * 4
    layout = CheckpointLayout(child.checkpoints)
    assert layout.committed_steps() == [8, 16, 24, 32, 40]
    assert all((layout.folder(step) / SHARD).read_text() == f"{SHARD} of step {step}" for step in (8, 40))
    assert steps_of_rows(child) == [step for step in range(1, 41) for _ in range(2)]
