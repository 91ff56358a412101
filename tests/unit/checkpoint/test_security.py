"""What a stranger's checkpoint can do: nothing but be refused."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from molgen_pretrain.checkpoint import commit
from molgen_pretrain.checkpoint.checkpointer import Checkpointer
from molgen_pretrain.checkpoint.errors import CheckpointDamaged
from molgen_pretrain.checkpoint.files import FileRecord, hash_file
from molgen_pretrain.errors import UserError

SHARDS = "rank-00000.safetensors"
DOCUMENTS = ("tensors.json", "state.json", "optimizer.json")

Saved = tuple[Path, dict[int, dict[str, torch.Tensor]]]


class Bomb:
    """Unpickling one makes a folder."""

    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["BOMB_MARK"],)


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    mark = tmp_path_factory.mktemp("bomb") / "exploded"
    monkeypatch.setenv("BOMB_MARK", str(mark))
    return mark


def forge(folder: Path, name: str, content: bytes) -> None:
    """Replace a file, with a manifest to match."""
    (folder / name).write_bytes(content)
    rewrite_manifest(folder, {name: hash_file(folder / name)})


def rewrite_manifest(folder: Path, files: dict[str, FileRecord], **changes: Any) -> None:
    manifest = vars(commit.read_manifest(folder)) | changes
    (folder / "manifest.json").unlink()
    commit.write_manifest(folder, commit.Manifest(**{**manifest, "files": {**manifest["files"], **files}}))


def load(folder: Path, training: Callable[..., Any]) -> None:
    model, optimizer = training(9, 0)
    Checkpointer(folder.parent, keep_latest_k=0).load(3, model=model, optimizer=optimizer)


def test_pickles_are_never_opened(saved: Saved, training: Callable[..., Any], mark: Path) -> None:
    folder = saved[0] / "step-00000003"
    legacy = folder / "legacy.pt"
    torch.save({"weights": Bomb()}, legacy)
    payloads = {"pickle": pickle.dumps(Bomb()), "torch": legacy.read_bytes()}
    legacy.unlink()
    # Beside our files: every name that torch's own checkpoint reader, or a person, would open.
    for name in (
        ".metadata",
        "__0_0.distcp",
        "__1_0.distcp",
        "state.pt",
        "pytorch_model.bin",
        "rank-00001.safetensors",
    ):
        (folder / name).write_bytes(payloads["pickle"])
    load(folder, training)

    # Worse: in place of our files, with a manifest forged to match, or in place of the manifest.
    for payload in payloads.values():
        for name in (SHARDS, *DOCUMENTS):
            original = (folder / name).read_bytes()
            forge(folder, name, payload)
            with pytest.raises(CheckpointDamaged):
                load(folder, training)
            forge(folder, name, original)
        load(folder, training)
    (folder / "manifest.json").write_bytes(payloads["pickle"])
    with pytest.raises(CheckpointDamaged):
        load(folder, training)

    assert not mark.exists()
    pickle.loads(payloads["pickle"])  # noqa: S301 - the bomb itself works
    assert mark.exists()


@pytest.mark.parametrize(
    "name", ["../step-00000002/state.json", "/etc/hostname", "..", ".", "", "a/state.json", "state.json\0", ".metadata"]
)
def test_a_manifest_names_only_files_of_a_checkpoint(name: str, saved: Saved, training: Callable[..., Any]) -> None:
    folder = saved[0] / "step-00000003"
    rewrite_manifest(folder, {name: FileRecord(5, "0" * 32)})
    with pytest.raises(CheckpointDamaged, match=r"manifest\.json.*none of a checkpoint's"):
        load(folder, training)


def test_a_newer_format_asks_for_the_newer_program(saved: Saved, training: Callable[..., Any]) -> None:
    folder = saved[0] / "step-00000003"
    rewrite_manifest(folder, {}, format_version=commit.FORMAT_VERSION + 1)
    with pytest.raises(UserError, match="newer program"):
        load(folder, training)
    with pytest.raises(UserError, match="committed steps beside it: 1, 2, 3"):
        Checkpointer(folder.parent, keep_latest_k=0).load(4, model=torch.nn.Linear(1, 1), optimizer=None)


HUGE = 2**62


def header(**changes: Any) -> Callable[[bytes], bytes]:
    """A safetensors file whose first entry claims something else than what is there."""

    def forge_header(content: bytes) -> bytes:
        (length,) = struct.unpack("<Q", content[:8])
        entries = json.loads(content[8 : 8 + length])
        entries["model.embed.weight"].update(changes)
        text = json.dumps(entries).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]

    return forge_header


LIES = {
    "header longer than the file": lambda content: struct.pack("<Q", HUGE) + content[8:],
    "header cut": lambda content: content[:40],
    "offsets beyond the file": header(data_offsets=[0, HUGE], shape=[HUGE // 4]),
    "offsets that overlap": header(data_offsets=[4, 116]),
    "shape larger than its bytes": header(shape=[HUGE, HUGE]),
    "another shape of as many bytes": header(shape=[4, 7]),
    "another dtype of as many bytes": header(dtype="I32"),
    "unknown dtype": header(dtype="OBJECT"),
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("lie", LIES)
def test_shards_that_lie_about_themselves_are_refused(lie: str, saved: Saved, training: Callable[..., Any]) -> None:
    folder = saved[0] / "step-00000003"
    forge(folder, SHARDS, LIES[lie]((folder / SHARDS).read_bytes()))
    with pytest.raises(CheckpointDamaged, match=SHARDS):
        load(folder, training)


def index(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def forge_index(content: bytes) -> bytes:
        document = json.loads(content)
        change(document["tensors"]["model.embed.weight"])
        return json.dumps(document).encode()

    return forge_index


WRONG_INDEXES = {
    "part of a tensor left out": index(lambda entry: entry["parts"][0].__setitem__(2, [3, 4])),
    "no parts": index(lambda entry: entry.update(parts=[])),
    "another rank's file, not in the manifest": index(lambda entry: entry["parts"][0].__setitem__(0, 1)),
    "a rank that is a path": index(lambda entry: entry["parts"][0].__setitem__(0, "../../x")),
    "negative place": index(lambda entry: entry["parts"][0].__setitem__(1, [-7, 0])),
    "huge": index(lambda entry: entry.update(shape=[HUGE, 4])),
    "no list": lambda content: b"[]",
    "deep": lambda content: b"[" * 100_000,
}


@pytest.mark.parametrize("what", WRONG_INDEXES)
def test_an_index_that_does_not_add_up_is_refused(what: str, saved: Saved, training: Callable[..., Any]) -> None:
    folder = saved[0] / "step-00000003"
    forge(folder, "tensors.json", WRONG_INDEXES[what]((folder / "tensors.json").read_bytes()))
    with pytest.raises(CheckpointDamaged):
        load(folder, training)


def test_pipes_and_devices_are_not_read(saved: Saved, training: Callable[..., Any]) -> None:
    folder = saved[0] / "step-00000003"
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        (folder / "state.json").unlink()
        make(folder / "state.json")
        rewrite_manifest(folder, {"state.json": FileRecord(0, "0" * 32)})
        with pytest.raises(CheckpointDamaged, match=r"state\.json: no regular file"):
            load(folder, training)
