"""Hugging Face export: a folder that AutoModelForCausalLM and AutoTokenizer load."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig, Qwen3ForCausalLM

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def export_hf(
    model: Qwen3ForCausalLM,
    tokenizer_dir: str | Path,
    target: Path,
    *,
    is_writer: bool,
    max_shard_size: str = "4GB",
) -> None:
    """Write config, weights (float32 safetensors) and tokenizer files to `target`, by one rename.

    Collective: every rank of a sharded model calls it, the one with `is_writer` gathers on its CPU and writes.
    An existing `target` is replaced. Raises OSError where the folder cannot be written; nothing is left of it then.
    """
    weights = {name: value for name, value in _whole_tensors(model) if is_writer}
    if not is_writer:
        return
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _write_weights(weights, temporary, max_shard_size)
        _write_rest(model, tokenizer_dir, temporary)
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
    except (OSError, SafetensorError) as error:  # the latter for every write of weights that failed
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(f"{target}: {error}") from error


def _whole_tensors(model: Qwen3ForCausalLM) -> Iterator[tuple[str, Tensor]]:
    """Parameters in full on the CPU, one at a time, gathered by all ranks; a tied head is not repeated."""
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        if isinstance(value, DTensor):
            value = value.full_tensor()
        yield name, value.to("cpu", torch.float32).contiguous()


def _write_weights(weights: dict[str, Tensor], folder: Path, max_shard_size: str) -> None:
    split = split_torch_state_dict_into_shards(weights, max_shard_size=max_shard_size)
    for filename, names in split.filename_to_tensors.items():
        save_file({name: weights[name] for name in names}, folder / filename, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _write_rest(model: Qwen3ForCausalLM, tokenizer_dir: str | Path, folder: Path) -> None:
    config = model.config
    config.save_pretrained(folder)
    GenerationConfig(eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id).save_pretrained(folder)
    for name in _TOKENIZER_FILES:
        source = Path(tokenizer_dir) / name
        if source.is_file():
            shutil.copyfile(source, folder / name)
