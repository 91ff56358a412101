"""The model in a checkpoint, verified, and its tensors a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from math import prod
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import Qwen3Config

from molgen_pretrain.checkpoint import match
from molgen_pretrain.checkpoint.errors import CheckpointDamaged
from molgen_pretrain.checkpoint.layout import shard_file
from molgen_pretrain.checkpoint.loading import Contents, read_contents, verify
from molgen_pretrain.checkpoint.ranks import Ranks
from molgen_pretrain.checkpoint.shards import Box, StoredTensor
from molgen_pretrain.checkpoint.state import MODEL_PREFIX, named_state
from molgen_pretrain.errors import UserError
from molgen_pretrain.model.qwen3 import Qwen3Arch, build_on_meta

PIECE_BYTES = 32 * 2**20  # of a tensor, in memory at a time
_SECTIONS = ("model", "data", "training", "init")


def read_config(file: Path) -> dict[str, Any]:
    """A run's resolved config. Raises UserError where the file is none."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; give the config.yaml of the run with --config FILE") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file}: is no YAML: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(content.get(section), dict) for section in _SECTIONS):
        raise UserError(f"{file}: is not the config.yaml of a run: it has no sections {', '.join(_SECTIONS)}")
    return content


def hf_config_of(model: Mapping[str, Any], *, pad_id: int) -> Qwen3Config:
    """The Hugging Face config of a config's model group. Raises UserError where sizes are missing."""
    known = [field for field in fields(Qwen3Arch) if field.name in model]
    required = {field.name for field in fields(Qwen3Arch) if field.default is MISSING}
    if missing := sorted(required - {field.name for field in known}):
        raise UserError("\n".join(f"model.{name}: is missing in the config; give the run's own" for name in missing))
    arch = Qwen3Arch(**{field.name: model[field.name] for field in known})
    return arch.hf_config(eos_token_id=pad_id, pad_token_id=pad_id)


def verified_contents(folder: Path, config: Qwen3Config) -> Contents:
    """What a checkpoint holds, after all its files were compared with their checksums.

    Raises CheckpointDamaged, or CheckpointMismatch where its weights are not of a model with this config.
    """
    ranks = Ranks()
    verify(ranks, folder, checksums=True)
    contents = read_contents(ranks, folder)
    model = named_state(build_on_meta(config), None)
    weights = {name: stored for name, stored in contents.tensors.items() if name.startswith(MODEL_PREFIX)}
    match.check_ties(folder, contents.ties, model.ties)
    match.check_tensors(folder, weights, model.tensors)
    return contents


def stored_rows(folder: Path, name: str, contents: Contents) -> Iterator[Tensor]:
    """A tensor from its first row to its last, in pieces of at most PIECE_BYTES, put together from all ranks' files.

    Raises CheckpointDamaged where a file does not hold what the index says.
    """
    stored = contents.tensors[name]
    rows, *rest = stored.shape
    step = max(1, PIECE_BYTES // (prod(rest) * stored.dtype.itemsize))
    for start in range(0, rows, step):
        yield _read(folder, name, stored, Box((start, *[0] * len(rest)), (min(step, rows - start), *rest)))


def _read(folder: Path, name: str, stored: StoredTensor, box: Box) -> Tensor:
    whole = torch.empty(box.sizes, dtype=stored.dtype)
    for rank, part in stored.parts:
        common = box.overlap(part)
        if not common.elements:
            continue
        path = folder / shard_file(rank)
        try:
            # Opened for each piece: what was read of a mapped file counts as the process's memory until it is closed.
            with safe_open(path, framework="pt") as file:
                there = file.get_slice(name)
                if tuple(there.get_shape()) != part.sizes:
                    raise CheckpointDamaged(folder, [f"{path.name}: {name} is not of the size that the index says"])
                whole[common.inside(box)] = there[common.inside(part)]
        except (OSError, SafetensorError) as error:
            raise CheckpointDamaged(folder, [f"{path.name}: {error}"]) from error
    return whole
