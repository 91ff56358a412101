"""Checkpoints that lie, or that ask for code to be run."""

import dataclasses
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, ChunkStorageMetadata, Metadata, MetadataIndex

from molgen_pretrain.errors import UserError
from molgen_pretrain.titan.checkpoint import TitanCheckpoint
from molgen_pretrain.titan.reader import DcpReader


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def torch_saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def change_metadata(folder: Path, change: Callable[[Metadata], None]) -> None:
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())  # noqa: S301 - our own
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))


@pytest.fixture
def full(titan: Any) -> Path:
    model = titan.model(tied=True)
    return titan.save(titan.state(model, moments=titan.moments(model)))


def test_metadata_that_runs_code_is_refused(full: Path, tmp_path: Path) -> None:
    change_metadata(full, lambda metadata: setattr(metadata, "planner_data", Touch(tmp_path / "harm")))
    with pytest.raises(UserError, match=rf"{os.mkdir.__module__}\.mkdir"):
        TitanCheckpoint(full)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", ["torch.load", "torch.serialization.load", "builtins.eval", "torch.nn.Linear"])
def test_metadata_may_name_only_what_metadata_needs(full: Path, name: str) -> None:
    module, _, attribute = name.rpartition(".")
    (full / ".metadata").write_bytes(f"c{module}\n{attribute}\n.".encode())
    with pytest.raises(UserError, match=name):
        DcpReader(full)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("train_state.step", TitanCheckpoint.progress),
        ("optimizer.param_groups.norm.weight.lr", TitanCheckpoint.settings),
        ("norm.weight", lambda checkpoint: checkpoint.weights["model.norm.weight"].read()),
    ],
)
def test_values_and_tensors_that_run_code_are_refused(
    full: Path, tmp_path: Path, name: str, read: Callable[[TitanCheckpoint], object]
) -> None:
    blob = torch_saved(Touch(tmp_path / "harm"))
    (full / "harm.distcp").write_bytes(blob)

    def point_there(metadata: Metadata) -> None:
        for index, info in metadata.storage_data.items():
            if index.fqn == name:
                info.relative_path, info.offset, info.length = "harm.distcp", 0, len(blob)

    change_metadata(full, point_there)
    checkpoint = TitanCheckpoint(full)
    with pytest.raises(UserError, match=name):
        read(checkpoint)
    assert not (tmp_path / "harm").exists()


def test_a_data_loader_s_pickle_is_not_even_opened(titan: Any, tmp_path: Path) -> None:
    model = titan.model(tied=True)
    state = titan.state(model, moments=titan.moments(model))
    harmful = {"dataloader.dp_rank_0": pickle.dumps(Touch(tmp_path / "harm")), "other.state": Touch(tmp_path / "harm")}
    checkpoint = TitanCheckpoint(titan.save({**state, **harmful}))
    checkpoint.progress()
    checkpoint.moments()
    checkpoint.settings()
    assert checkpoint.not_carried() == ["dataloader", "lr_scheduler", "other"]
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("path", ["../outside.distcp", "/etc/passwd", "sub/file"])
def test_files_outside_the_folder_are_not_opened(full: Path, path: str) -> None:
    change_metadata(full, lambda metadata: setattr(next(iter(metadata.storage_data.values())), "relative_path", path))
    with pytest.raises(UserError, match="leads out of its folder"):
        DcpReader(full)


def _chunks(metadata: Metadata, chunks: list[tuple[list[int], list[int]]]) -> None:
    entry = metadata.state_dict_metadata["norm.weight"]
    entry.chunks = [ChunkStorageMetadata(torch.Size(o), torch.Size(s)) for o, s in chunks]
    info = next(info for index, info in metadata.storage_data.items() if index.fqn == "norm.weight")
    for chunk in entry.chunks:
        metadata.storage_data[MetadataIndex("norm.weight", chunk.offsets)] = info


@pytest.mark.parametrize(
    "chunks",
    [
        [([0], [12])],
        [([0], [12]), ([0], [12])],
        [([0], [16]), ([8], [8])],
        [([0], [25])],
        [([-1], [24])],
        [([0, 0], [24, 1])],
        [],
    ],
    ids=["gap", "twice the same", "overlap and gap", "beyond the end", "before the beginning", "other rank", "none"],
)
def test_chunks_that_do_not_make_up_their_tensor_are_refused(
    full: Path, chunks: list[tuple[list[int], list[int]]]
) -> None:
    change_metadata(full, lambda metadata: _chunks(metadata, chunks))
    with pytest.raises(UserError, match=r"norm\.weight"):
        TitanCheckpoint(full).weights["model.norm.weight"].read()


def test_a_tensor_in_several_files_is_put_together(full: Path) -> None:
    whole = torch.randn(24)
    parts = {0: whole[:10], 10: whole[10:11], 11: whole[11:]}

    def cut(metadata: Metadata) -> None:
        original = next(info for index, info in metadata.storage_data.items() if index.fqn == "norm.weight")
        _chunks(metadata, [([offset], list(part.shape)) for offset, part in parts.items()])
        for offset, part in parts.items():
            blob = torch_saved(part.clone())
            (full / f"part-{offset}.distcp").write_bytes(b"before" + blob + b"after")
            place = {"relative_path": f"part-{offset}.distcp", "offset": 6, "length": len(blob)}
            index = MetadataIndex("norm.weight", torch.Size([offset]))
            metadata.storage_data[index] = dataclasses.replace(original, **place)

    change_metadata(full, cut)
    assert torch.equal(TitanCheckpoint(full).weights["model.norm.weight"].read(), whole)


def test_a_tensor_of_enormous_size_is_refused_before_memory_is_taken(full: Path) -> None:
    def grow(metadata: Metadata) -> None:
        metadata.state_dict_metadata["norm.weight"].size = torch.Size([1 << 50])
        _chunks(metadata, [([0], [1 << 50])])

    change_metadata(full, grow)
    reader = DcpReader(full)
    with pytest.raises(UserError, match="too large"):
        reader.tensor("norm.weight").read()


def test_damage_is_named(full: Path) -> None:
    (file,) = full.glob("*.distcp")
    weights = TitanCheckpoint(full).weights
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=file.name):
        weights["model.norm.weight"].read()
    (full / ".metadata").write_bytes(b"\x80\x04no pickle")
    with pytest.raises(UserError, match="damaged"):
        DcpReader(full)
    (full / ".metadata").unlink()
    with pytest.raises(UserError, match="step-N"):
        DcpReader(full)


def test_compressed_checkpoints_are_refused(full: Path) -> None:
    def compress(metadata: Metadata) -> None:
        next(iter(metadata.storage_data.values())).transform_descriptors = ["stream.zstd"]

    change_metadata(full, compress)
    with pytest.raises(UserError, match=r"stream\.zstd"):
        DcpReader(full)


def test_a_value_that_is_no_value_is_refused(full: Path) -> None:
    def swap(metadata: Metadata) -> None:
        info = next(info for index, info in metadata.storage_data.items() if index.fqn == "norm.weight")
        metadata.state_dict_metadata["odd"] = BytesStorageMetadata()
        metadata.storage_data[MetadataIndex("odd")] = info

    change_metadata(full, swap)
    with pytest.raises(UserError, match="no plain value"):
        DcpReader(full).value("odd")
