from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from molgen_pretrain.checkpoint import commit, saving, state
from molgen_pretrain.checkpoint.checkpointer import Checkpointer
from molgen_pretrain.checkpoint.errors import CheckpointDamaged, CheckpointMismatch
from molgen_pretrain.checkpoint.layout import CheckpointLayout
from molgen_pretrain.checkpoint.state import named_tensors

SHARDS = "rank-00000.safetensors"

Saved = tuple[Path, dict[int, dict[str, torch.Tensor]]]
Holds = Callable[[Any, Any, dict[str, torch.Tensor]], bool]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def test_state_survives_json_exactly(training: Callable[..., Any], tmp_path: Path) -> None:
    state = {"step": 7, "lr": 0.1 + 0.2, "seed": 2**63, "none": None, "inf": float("inf"), "t": [1, "é"]}
    model, optimizer = training(0)
    checkpointer = Checkpointer(tmp_path / "new", keep_latest_k=1)
    assert checkpointer.steps() == []
    assert checkpointer.load_newest(model=model, optimizer=optimizer) is None
    path = checkpointer.save(7, model=model, optimizer=optimizer, state=state)
    assert path == tmp_path / "new" / "step-00000007"
    assert checkpointer.load(path, model=model, optimizer=optimizer) == state
    assert checkpointer.steps() == [7]


def test_the_model_alone_can_be_saved_and_taken(training: Callable[..., Any], tmp_path: Path, holds: Holds) -> None:
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
    saved: Saved,
    training: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    holds: Holds,
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


def test_damage_leaves_the_model_alone(saved: Saved, training: Callable[..., Any], holds: Holds) -> None:
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
    saved: Saved, training: Callable[..., Any], holds: Holds
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
    saved: Saved, training: Callable[..., Any]
) -> None:
    folder, _ = saved
    truncate(folder / "step-00000003" / SHARDS)
    checkpointer = Checkpointer(folder, keep_latest_k=2)
    model, optimizer = training(9, 0)
    checkpointer.load_newest(model=model, optimizer=optimizer)
    checkpointer.save(4, model=model, optimizer=optimizer, state={})
    assert checkpointer.steps() == [2, 3, 4]


@pytest.mark.parametrize("stage", ["write_tensors", "write_bytes", "write_manifest", "publish"])
def test_a_save_that_dies_midway_leaves_the_older_state(
    stage: str, saved: Saved, training: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, holds: Holds
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


def test_a_kill_during_deletion_never_leaves_half_a_checkpoint(
    saved: Saved,
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


def test_the_manifest_says_what_a_person_wants_to_know(
    saved: Saved,
) -> None:
    folder, _ = saved
    content = json.loads((folder / "step-00000002" / "manifest.json").read_text())
    assert (content["step"], content["world_size"], content["milestone"]) == (2, 1, False)
    assert content["torch_version"] == torch.__version__
    listed = {name: record["bytes"] for name, record in content["files"].items()}
    on_disk = {entry.name: entry.stat().st_size for entry in (folder / "step-00000002").iterdir()}
    assert on_disk.pop("manifest.json")
    assert listed == on_disk


def test_format_1_is_still_read(saved: Saved, training: Callable[..., Any], holds: Holds) -> None:
    folder, contents = saved
    path = folder / "step-00000003" / "manifest.json"
    manifest = json.loads(path.read_text())
    for key in ("digest", "finite", "saved_at"):
        del manifest[key]
    manifest["format_version"] = 1
    for name, record in manifest["files"].items():
        digest = hashlib.blake2b((path.parent / name).read_bytes(), digest_size=16).hexdigest()
        manifest["files"][name] = {"bytes": record["bytes"], "blake2b": digest}
    text = json.dumps(manifest, sort_keys=True).encode()
    path.write_text(json.dumps({**manifest, "digest": hashlib.blake2b(text, digest_size=16).hexdigest()}))
    model, optimizer = training(9, 0)
    checkpointer = Checkpointer(folder, keep_latest_k=0)
    checkpointer.load(3, model=model, optimizer=optimizer)
    assert holds(model, optimizer, contents[3])
    flip_a_bit(folder / "step-00000003" / SHARDS)
    with pytest.raises(CheckpointDamaged, match="checksum"):
        checkpointer.load(3, model=model, optimizer=optimizer)


def test_without_fallback_the_newest_damage_is_the_end(saved: Saved, training: Callable[..., Any]) -> None:
    folder, _ = saved
    truncate(folder / "step-00000003" / SHARDS)
    flip_a_bit(folder / "step-00000003" / "tensors.json")
    model, optimizer = training(9, 0)
    with pytest.raises(CheckpointDamaged) as caught:
        Checkpointer(folder, keep_latest_k=0).load_newest(model=model, optimizer=optimizer, fallback=False)
    assert caught.value.folder.name == "step-00000003"
    assert [line.split(":")[0] for line in caught.value.problems] == [SHARDS, "tensors.json"]


def test_a_folder_under_the_name_of_another_step_is_damage(saved: Saved, training: Callable[..., Any]) -> None:
    folder, _ = saved
    shutil.copytree(folder / "step-00000002", folder / "step-00000007")
    model, optimizer = training(9, 0)
    restored = Checkpointer(folder, keep_latest_k=0).load_newest(model=model, optimizer=optimizer)
    assert restored == (folder / "step-00000003", {"step": 3})


def test_tensors_that_the_program_does_not_know_are_not_dropped(training: Callable[..., Any], tmp_path: Path) -> None:
    model, _ = training(0)
    checkpointer = Checkpointer(tmp_path, keep_latest_k=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "MODEL_PREFIX", "averaged.")
        checkpointer.save(1, model=model, optimizer=None, state={})
    with pytest.raises(CheckpointMismatch, match=r"averaged\.norm\.bias: only in the checkpoint"):
        checkpointer.load(1, model=model, optimizer=None)


def test_what_is_not_finite_is_told_kept_apart_and_passed_over(
    training: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer = training(0)
    checkpointer = Checkpointer(tmp_path, keep_latest_k=1)
    checkpointer.save(1, model=model, optimizer=optimizer, state={"step": 1})
    optimizer.state[model.norm.bias]["exp_avg"][2] = float("nan")
    model.embed.weight.data[0, 0] = float("-inf")
    for step in (2, 3):
        checkpointer.save(step, model=model, optimizer=optimizer, state={"step": step})
    assert checkpointer.steps() == [1, 3]
    assert "model.embed.weight\n  optimizer.norm.bias.exp_avg" in caplog.text
    finite = [commit.read_manifest(checkpointer.layout.folder(step)).finite for step in (1, 3)]
    assert finite == [True, False]
    caplog.clear()
    assert checkpointer.load_newest(model=model, optimizer=optimizer) == (tmp_path / "step-00000003", {"step": 3})
    assert "NaN or infinity" in caplog.text
    restored = checkpointer.load_newest(model=model, optimizer=optimizer, finite_only=True)
    assert restored == (tmp_path / "step-00000001", {"step": 1})
    assert model.embed.weight.isfinite().all()
