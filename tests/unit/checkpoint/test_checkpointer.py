from __future__ import annotations

import errno
import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from molgen_pretrain.checkpoint import commit, saving
from molgen_pretrain.checkpoint.checkpointer import Checkpointer
from molgen_pretrain.checkpoint.errors import CheckpointDamaged, CheckpointMismatch, CheckpointSaveError
from molgen_pretrain.checkpoint.layout import CheckpointLayout
from molgen_pretrain.checkpoint.state import named_tensors
from molgen_pretrain.errors import UserError

SHARDS = "rank-00000.safetensors"


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.fixture
def saved(training: Callable[..., Any], tmp_path: Path) -> tuple[Path, dict[int, dict[str, torch.Tensor]]]:
    """A folder with checkpoints of steps 1, 2 and 3, and the tensors that each holds."""
    contents = {}
    checkpointer = Checkpointer(tmp_path, keep_latest_k=0)
    for step in (1, 2, 3):
        model, optimizer = training(step, step)
        checkpointer.save(step, model=model, optimizer=optimizer, state={"step": step})
        contents[step] = named_tensors(model, optimizer)
    return tmp_path, contents


def holds(model: Any, optimizer: Any, expected: dict[str, torch.Tensor]) -> bool:
    tensors = named_tensors(model, optimizer)
    return all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_state_survives_json_exactly(training: Callable[..., Any], tmp_path: Path) -> None:
    state = {"step": 7, "lr": 0.1 + 0.2, "seed": 2**63, "none": None, "inf": float("inf"), "t": [1, "é"]}
    model, optimizer = training(0)
    checkpointer = Checkpointer(tmp_path / "new", keep_latest_k=1)
    assert checkpointer.newest() is None
    assert checkpointer.load_newest(model=model, optimizer=optimizer) is None
    path = checkpointer.save(7, model=model, optimizer=optimizer, state=state)
    assert path == tmp_path / "new" / "step-00000007"
    assert checkpointer.load(path, model=model, optimizer=optimizer) == state
    assert checkpointer.newest() == 7


def test_the_model_alone_can_be_saved_and_taken(training: Callable[..., Any], tmp_path: Path) -> None:
    model, optimizer = training(0)
    checkpointer = Checkpointer(tmp_path, keep_latest_k=0)
    checkpointer.save(1, model=model, optimizer=optimizer, state={})
    checkpointer.save(2, model=model, optimizer=None, state={})
    for step in (1, 2):
        other, its_optimizer = training(5, 0)
        checkpointer.load(step, model=other, optimizer=None)
        assert holds(other, None, named_tensors(model, None))
    with pytest.raises(CheckpointMismatch, match="holds no optimizer"):
        checkpointer.load(2, model=other, optimizer=its_optimizer)


@pytest.mark.parametrize("harm", [flip_a_bit, truncate, Path.unlink])
@pytest.mark.parametrize("name", [SHARDS, "tensors.json", "state.json", "optimizer.json", "manifest.json"])
def test_damage_is_reported_by_file_and_an_older_one_is_used(
    harm: Callable[[Path], Any],
    name: str,
    saved: tuple[Path, dict[int, dict[str, torch.Tensor]]],
    training: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder, contents = saved
    harm(folder / "step-00000003" / name)
    model, optimizer = training(9, 0)
    with caplog.at_level(logging.ERROR):
        restored = Checkpointer(folder, keep_latest_k=0).load_newest(model=model, optimizer=optimizer)
    assert restored == (folder / "step-00000002", {"step": 2})
    assert holds(model, optimizer, contents[2])
    if (harm, name) == (Path.unlink, "manifest.json"):  # never committed: nothing to report
        assert not caplog.records
    else:
        assert name in caplog.text


def test_damage_leaves_the_model_alone(
    saved: tuple[Path, dict[int, dict[str, torch.Tensor]]], training: Callable[..., Any]
) -> None:
    folder, _ = saved
    model, optimizer = training(9, 1)
    before = {name: tensor.detach().clone() for name, tensor in named_tensors(model, optimizer).items()}
    for step in (1, 2, 3):
        flip_a_bit(folder / f"step-0000000{step}" / SHARDS)
    with pytest.raises(CheckpointDamaged, match="checksum") as caught:
        Checkpointer(folder, keep_latest_k=0).load_newest(model=model, optimizer=optimizer)
    assert [line.split("/")[0] for line in caught.value.problems] == [f"step-0000000{n}" for n in (3, 2, 1)]
    assert holds(model, optimizer, before)


def test_a_damaged_or_foreign_step_is_replaced_when_training_reaches_it(
    saved: tuple[Path, dict[int, dict[str, torch.Tensor]]], training: Callable[..., Any]
) -> None:
    folder, contents = saved
    flip_a_bit(folder / "step-00000003" / SHARDS)
    checkpointer = Checkpointer(folder, keep_latest_k=0)
    model, optimizer = training(9, 0)
    checkpointer.load_newest(model=model, optimizer=optimizer)
    model.embed.weight.data.add_(1)
    checkpointer.save(2, model=model, optimizer=optimizer, state={})  # loaded: already there
    checkpointer.save(3, model=model, optimizer=optimizer, state={})
    other, its_optimizer = training(8, 0)
    assert checkpointer.load(2, model=other, optimizer=its_optimizer) == {"step": 2}
    assert holds(other, its_optimizer, contents[2])
    checkpointer.load(3, model=other, optimizer=its_optimizer)
    assert holds(other, its_optimizer, named_tensors(model, optimizer))
    assert [entry.name for entry in CheckpointLayout(folder).leftovers()] == []


def test_after_going_back_the_same_checkpointer_replaces_its_own_later_steps(
    training: Callable[..., Any], tmp_path: Path
) -> None:
    checkpointer = Checkpointer(tmp_path, keep_latest_k=0)
    model, optimizer = training(0)
    for step in (1, 2):
        checkpointer.save(step, model=model, optimizer=optimizer, state={"future": "old"})
    checkpointer.load(1, model=model, optimizer=optimizer)
    checkpointer.save(2, model=model, optimizer=optimizer, state={"future": "new"})
    assert checkpointer.load(2, model=model, optimizer=optimizer) == {"future": "new"}


def test_retention_that_fails_costs_neither_the_save_nor_the_run(
    training: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    checkpointer = Checkpointer(tmp_path, keep_latest_k=1)
    model, optimizer = training(0)
    checkpointer.save(1, model=model, optimizer=optimizer, state={})
    monkeypatch.setattr(shutil, "rmtree", refuse)
    checkpointer.save(2, model=model, optimizer=optimizer, state={})
    assert checkpointer.steps() == [2]
    assert "could not be deleted" in caplog.text


def test_retention_spares_milestones_of_earlier_runs_and_ignores_what_lies_ahead(
    training: Callable[..., Any], tmp_path: Path
) -> None:
    model, optimizer = training(0)

    def save(checkpointer: Checkpointer, *steps: int) -> list[int]:
        for step in steps:
            checkpointer.save(step, model=model, optimizer=optimizer, state={})
        return checkpointer.steps()

    assert save(Checkpointer(tmp_path, keep_latest_k=1, milestones=[2]), 1, 2, 3, 4) == [2, 4]
    assert save(Checkpointer(tmp_path, keep_latest_k=2, milestones=[6]), 5, 6, 7, 8, 9) == [2, 6, 8, 9]
    # Going back to 2 and on: 8 and 9 are another future's, the fresh 3 must survive them.
    rewound = Checkpointer(tmp_path, keep_latest_k=1)
    rewound.load(2, model=model, optimizer=optimizer)
    assert save(rewound, 3) == [2, 3, 6, 8, 9]
    assert save(rewound, 8) == [2, 6, 8, 9]


def test_a_known_damaged_checkpoint_does_not_count_as_one_of_the_newest(
    saved: tuple[Path, dict[int, dict[str, torch.Tensor]]], training: Callable[..., Any]
) -> None:
    folder, _ = saved
    truncate(folder / "step-00000003" / SHARDS)
    checkpointer = Checkpointer(folder, keep_latest_k=2)
    model, optimizer = training(9, 0)
    checkpointer.load_newest(model=model, optimizer=optimizer)
    checkpointer.save(4, model=model, optimizer=optimizer, state={})
    assert checkpointer.steps() == [2, 3, 4]


@pytest.mark.parametrize("stage", ["write_tensors", "write_json", "write_manifest", "publish"])
def test_a_save_that_dies_midway_leaves_the_older_state(
    stage: str,
    saved: tuple[Path, dict[int, dict[str, torch.Tensor]]],
    training: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, contents = saved
    model, optimizer = training(4, 4)

    class Killed(BaseException):
        """Passes every handler, as a kill does."""

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(saving, stage, die)
        with pytest.raises(Killed):
            Checkpointer(folder, keep_latest_k=1).save(4, model=model, optimizer=optimizer, state={})
    assert len(CheckpointLayout(folder).leftovers()) == 1

    again = Checkpointer(folder, keep_latest_k=1)
    restored = again.load_newest(model=model, optimizer=optimizer)
    assert restored == (folder / "step-00000003", {"step": 3})
    assert holds(model, optimizer, contents[3])
    again.save(4, model=model, optimizer=optimizer, state={})
    assert sorted(entry.name for entry in folder.iterdir()) == ["step-00000004"]


@pytest.mark.parametrize("stage", ["write_tensors", "write_json", "write_manifest", "publish"])
def test_a_full_disk_costs_the_save_only(
    stage: str, training: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = training(0)
    checkpointer = Checkpointer(tmp_path, keep_latest_k=1)
    checkpointer.save(1, model=model, optimizer=optimizer, state={})

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(saving, stage, full)
        with pytest.raises(CheckpointSaveError, match=r"step 2 was not saved.*No space left"):
            checkpointer.save(2, model=model, optimizer=optimizer, state={})
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000001"]
    checkpointer.save(2, model=model, optimizer=optimizer, state={})
    assert checkpointer.steps() == [2]


def test_a_kill_during_deletion_never_leaves_half_a_checkpoint(
    saved: tuple[Path, dict[int, dict[str, torch.Tensor]]],
    training: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, _ = saved
    model, optimizer = training(0)

    def die(path: Path) -> None:
        (path / SHARDS).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", die)
    with pytest.raises(KeyboardInterrupt):
        Checkpointer(folder, keep_latest_k=1).save(4, model=model, optimizer=optimizer, state={})
    assert Checkpointer(folder, keep_latest_k=1).steps() == [2, 3, 4]
    assert ".deleted-" in CheckpointLayout(folder).leftovers()[0].name


def test_state_that_is_not_json_is_refused_before_anything_is_committed(
    training: Callable[..., Any], tmp_path: Path
) -> None:
    model, optimizer = training(0)
    checkpointer = Checkpointer(tmp_path, keep_latest_k=1)
    with pytest.raises(RuntimeError, match="not JSON serializable"):
        checkpointer.save(1, model=model, optimizer=optimizer, state={"x": object()})
    assert list(tmp_path.iterdir()) == []


def test_differences_from_the_program_are_all_listed(training: Callable[..., Any], tmp_path: Path) -> None:
    model, optimizer = training(0)
    checkpointer = Checkpointer(tmp_path, keep_latest_k=1)
    checkpointer.save(1, model=model, optimizer=optimizer, state={})
    other, _ = training(1)
    before = other.embed.weight.detach().clone()
    other.norm = nn.LayerNorm(4, dtype=torch.bfloat16, bias=False)
    other.extra = nn.Parameter(torch.zeros(2))
    with pytest.raises(CheckpointMismatch) as caught:
        checkpointer.load(1, model=other, optimizer=torch.optim.AdamW(other.parameters()))
    for line in (
        "model.norm.bias: only in the checkpoint",
        "model.extra: only in the program",
        "model.norm.weight: torch.float32 (4,) in the checkpoint, torch.bfloat16 (4,) in the program",
    ):
        assert line in str(caught.value)
    assert torch.equal(other.embed.weight, before)


def test_untied_weights_and_other_trained_sets_are_refused(training: Callable[..., Any], tmp_path: Path) -> None:
    model, optimizer = training(0)
    checkpointer = Checkpointer(tmp_path, keep_latest_k=1)
    checkpointer.save(1, model=model, optimizer=optimizer, state={})
    fewer = torch.optim.AdamW([model.embed.weight, model.norm.weight])
    with pytest.raises(CheckpointMismatch, match=r"trained parameter norm\.bias: only in the checkpoint"):
        checkpointer.load(1, model=model, optimizer=fewer)
    model.head.weight = nn.Parameter(model.embed.weight.detach().clone())
    with pytest.raises(CheckpointMismatch, match=r"model\.head\.weight: shared with model\.embed\.weight"):
        checkpointer.load(1, model=model, optimizer=None)


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["BOMB_MARK"],)


def test_pickles_planted_in_a_checkpoint_are_never_opened(
    saved: tuple[Path, dict[int, dict[str, torch.Tensor]]],
    training: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder, contents = saved
    mark = tmp_path_factory.mktemp("bomb") / "exploded"
    monkeypatch.setenv("BOMB_MARK", str(mark))
    payload = pickle.dumps(Bomb())
    for name in (".metadata", "__0_0.distcp", "state.pt", "optimizer.bin", "rank-00001.safetensors"):
        (folder / "step-00000003" / name).write_bytes(payload)
    model, optimizer = training(9, 0)
    checkpointer = Checkpointer(folder, keep_latest_k=0)
    checkpointer.load(3, model=model, optimizer=optimizer)
    assert holds(model, optimizer, contents[3])

    # Worse: in place of its own files, with a manifest forged to match.
    for name in (SHARDS, "tensors.json", "state.json", "optimizer.json"):
        forged = folder / "step-00000003"
        original = (forged / name).read_bytes()
        manifest = commit.read_manifest(forged)
        (forged / name).write_bytes(payload)
        files = {**manifest.files, name: commit.hash_file(forged / name)}
        (forged / "manifest.json").unlink()
        commit.write_manifest(forged, commit.Manifest(3, False, 1, "2", files))
        with pytest.raises(CheckpointDamaged):
            checkpointer.load(3, model=model, optimizer=optimizer)
        (forged / name).write_bytes(original)
    assert not mark.exists()
    pickle.loads(payload)  # noqa: S301 - the bomb itself works
    assert mark.exists()


def test_manifests_that_point_outside_or_come_from_the_future(
    saved: tuple[Path, dict[int, dict[str, torch.Tensor]]], training: Callable[..., Any]
) -> None:
    folder, _ = saved
    model, optimizer = training(9, 0)
    path = folder / "step-00000003"
    manifest = commit.read_manifest(path)
    for change, error in (
        ({"files": {"../step-00000002/state.json": manifest.files["state.json"]}}, CheckpointDamaged),
        ({"format_version": 2}, UserError),
    ):
        (path / "manifest.json").unlink()
        commit.write_manifest(path, commit.Manifest(**{**vars(manifest), **change}))
        with pytest.raises(error):
            Checkpointer(folder, keep_latest_k=0).load(3, model=model, optimizer=optimizer)
    with pytest.raises(UserError, match="committed steps beside it: 1, 2, 3"):
        Checkpointer(folder, keep_latest_k=0).load(4, model=model, optimizer=optimizer)


def test_the_manifest_says_what_a_person_wants_to_know(
    saved: tuple[Path, dict[int, dict[str, torch.Tensor]]],
) -> None:
    folder, _ = saved
    content = json.loads((folder / "step-00000002" / "manifest.json").read_text())
    assert (content["step"], content["world_size"], content["milestone"]) == (2, 1, False)
    assert content["torch_version"] == torch.__version__
    listed = {name: record["bytes"] for name, record in content["files"].items()}
    on_disk = {entry.name: entry.stat().st_size for entry in (folder / "step-00000002").iterdir()}
    assert on_disk.pop("manifest.json")
    assert listed == on_disk
