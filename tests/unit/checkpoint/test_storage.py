from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import xxhash
from safetensors.torch import load_file
from torch import Tensor

from molgen_pretrain.checkpoint.shards import Box, StoredTensor
from molgen_pretrain.checkpoint.storage import (
    DTYPE_NAMES,
    index_from_json,
    index_to_json,
    read_tensors,
    write_tensors,
)


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def every_dtype() -> dict[str, Tensor]:
    """Random bits of every dtype (NaN payloads and all), in shapes from 0-dim up, some not contiguous."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for dtype in DTYPE_NAMES:
        raw = torch.randint(0, 256, (6 * dtype.itemsize,), generator=generator, dtype=torch.uint8)
        values = (raw % 2).bool() if dtype == torch.bool else raw.view(dtype)
        tensors[f"{dtype} matrix"] = values.reshape(2, 3).t()
        tensors[f"{dtype} scalar"] = values[1].clone()
        tensors[f"{dtype} vector"] = values[1:]
    return tensors


def whole(tensor: Tensor) -> StoredTensor:
    shape = tuple(tensor.shape)
    return StoredTensor(tensor.dtype, shape, ((0, Box((0,) * len(shape), shape)),))


def test_safetensors_itself_reads_what_is_written(tmp_path: Path) -> None:
    tensors = every_dtype()
    record = write_tensors(tmp_path / "rank-00000.safetensors", tensors).record
    content = (tmp_path / "rank-00000.safetensors").read_bytes()
    assert record.bytes == len(content)
    assert record.digest == xxhash.xxh3_128_hexdigest(content)
    loaded = load_file(tmp_path / "rank-00000.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert bits(loaded[name]) == bits(tensor), name


def test_reading_restores_every_bit_into_any_memory_layout(tmp_path: Path) -> None:
    tensors = every_dtype()
    write_tensors(tmp_path / "rank-00000.safetensors", tensors)
    targets = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
    read_tensors(tmp_path, {name: whole(tensor) for name, tensor in tensors.items()}, targets)
    for name, tensor in tensors.items():
        assert bits(targets[name]) == bits(tensor), name


def test_a_tensor_is_assembled_from_the_boxes_of_several_files(tmp_path: Path) -> None:
    table = torch.arange(35.0).reshape(5, 7)
    parts = [(0, Box((0, 0), (2, 7))), (1, Box((2, 0), (3, 4))), (2, Box((2, 4), (3, 3)))]
    for rank, box in parts:
        write_tensors(tmp_path / f"rank-0000{rank}.safetensors", {"t": table[box.inside(Box((0, 0), (5, 7)))]})
    target = torch.zeros(5, 7)
    read_tensors(tmp_path, {"t": StoredTensor(torch.float32, (5, 7), tuple(parts))}, {"t": target})
    assert torch.equal(target, table)


def test_no_tensors_make_a_valid_file(tmp_path: Path) -> None:
    write_tensors(tmp_path / "rank-00000.safetensors", {})
    assert load_file(tmp_path / "rank-00000.safetensors") == {}


def test_a_file_that_contradicts_the_index_is_refused_not_cast(tmp_path: Path) -> None:
    write_tensors(tmp_path / "rank-00000.safetensors", {"t": torch.ones(4, dtype=torch.bfloat16)})
    target = torch.zeros(4)
    with pytest.raises(ValueError, match=r"BF16 \(4,\)"):
        read_tensors(tmp_path, {"t": whole(target)}, {"t": target})
    with pytest.raises(ValueError, match="other"):
        read_tensors(tmp_path, {"other": whole(target)}, {"other": target})
    (tmp_path / "rank-00000.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match=r"rank-00000\.safetensors"):
        read_tensors(tmp_path, {"t": whole(target)}, {"t": target})


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t", {"t": torch.ones(1)})
    with pytest.raises(FileExistsError):
        write_tensors(tmp_path / "t", {"t": torch.zeros(1)})


def test_unknown_dtypes_are_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="complex64"):
        write_tensors(tmp_path / "t", {"t": torch.ones(1, dtype=torch.complex64)})


def test_the_index_survives_json() -> None:
    index = {"a": StoredTensor(torch.bfloat16, (3, 2), ((0, Box((0, 0), (2, 2))), (1, Box((2, 0), (1, 2)))))}
    index["scalar"] = whole(torch.tensor(1.0))
    index["empty"] = StoredTensor(torch.int64, (0, 4), ())
    assert index_from_json(json.loads(json.dumps(index_to_json(index)))) == index
