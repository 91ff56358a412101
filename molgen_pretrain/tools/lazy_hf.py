"""Hugging Face folders, written and read a shard at a time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import GenerationConfig, Qwen3Config

from molgen_pretrain.checkpoint.storage import DTYPE_NAMES
from molgen_pretrain.errors import UserError
from molgen_pretrain.model.hf_io import _TOKENIZER_FILES as TOKENIZER_FILES
from molgen_pretrain.titan.lazy import LazyTensor

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


def write_hf_folder(
    target: Path, weights: Mapping[str, LazyTensor], config: Qwen3Config, tokenizer: Path | None, *, max_bytes: int
) -> None:
    """Write config, weights in shards of at most `max_bytes`, and the tokenizer's files, by one rename.

    `target` must not exist. Memory holds one shard. Raises OSError where storage fails; nothing is left then.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _write_weights(temporary, weights, max_bytes)
        config.save_pretrained(temporary)
        if tokenizer is not None:
            GenerationConfig(eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id).save_pretrained(
                temporary
            )
            for file in (tokenizer / name for name in TOKENIZER_FILES):
                if file.is_file():
                    shutil.copyfile(file, temporary / file.name)
        os.replace(temporary, target)
    except SafetensorError as error:  # what the library raises for every write that failed
        raise OSError(f"{target}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_hf_weights(folder: Path) -> dict[str, LazyTensor]:
    """All weights of a folder, one file or several, none of them read yet.

    Raises:
        UserError: there are none, or a file is missing or damaged.
    """
    return {name: weight for file in _weight_files(folder) for name, weight in _read_file(file).items()}


def _write_weights(folder: Path, weights: Mapping[str, LazyTensor], max_bytes: int) -> None:
    split = split_state_dict_into_shards_factory(
        dict(weights),
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        get_storage_id=lambda tensor: None,
        max_shard_size=max_bytes,
    )
    for filename, names in split.filename_to_tensors.items():
        save_file({name: weights[name].read() for name in names}, folder / filename, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _weight_files(folder: Path) -> list[Path]:
    if not (folder / INDEX_FILE).is_file():
        if not (folder / WEIGHTS_FILE).is_file():
            raise UserError(f"{folder}: neither {WEIGHTS_FILE} nor {INDEX_FILE} in it")
        return [folder / WEIGHTS_FILE]
    try:
        names = set(json.loads((folder / INDEX_FILE).read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{folder / INDEX_FILE}: no index of weights: {error!r}") from error
    if outside := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
        raise UserError(f"{folder / INDEX_FILE}: it names files outside its folder: {outside}")
    return [folder / name for name in sorted(names)]


def _read_file(file: Path) -> dict[str, LazyTensor]:
    try:
        with safe_open(file, framework="pt") as content:
            parts = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118 - no mapping
            return {name: _lazy(file, name, _DTYPES[p.get_dtype()], tuple(p.get_shape())) for name, p in parts.items()}
    except (OSError, SafetensorError, KeyError) as error:  # the last for a dtype of no name here
        raise UserError(f"{file}: {error}") from error


def _lazy(file: Path, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> LazyTensor:
    def read() -> torch.Tensor:
        with safe_open(file, framework="pt") as content:
            return content.get_tensor(name)

    return LazyTensor(dtype, shape, read)
