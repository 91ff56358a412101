"""Hugging Face export: a folder that AutoModelForCausalLM and AutoTokenizer load."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from molgen_pretrain.model.hf_weights import FilePlan, plan_files, write_weights

# What makes a tokenizer. The last is the record beside a compact one, without which it cannot be expanded again.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "compaction.json",
)
_CARD_FILE = "README.md"


def export_hf(
    model: Qwen3ForCausalLM,
    tokenizer_dir: str | Path,
    target: Path,
    *,
    is_writer: bool,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "4GB",
    card: str | None = None,
) -> None:
    """Write config, weights (safetensors in `dtype`), tokenizer files and `card` to `target`, by one rename.

    Collective: every rank of a sharded model calls it, the one with `is_writer` writes. Each rank has one whole
    parameter at a time in memory, whatever the size of the files. An existing `target` is replaced. Raises OSError
    on the writer where the folder cannot be written; nothing is left of it then.
    """
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}  # a tied head once
    plan = plan_files({name: tuple(value.shape) for name, value in parameters.items()}, dtype, max_shard_size)
    tensors = ((_whole(parameters[name], dtype),) for name in plan.order)
    try:
        if is_writer:
            write_hf_folder(target, model.config, tokenizer_dir, plan, tensors, card=card)
    finally:
        for _ in tensors:  # the other ranks wait for this one's part of every parameter, even if writing failed
            pass


def write_hf_folder(
    target: Path,
    config: Qwen3Config,
    tokenizer_dir: str | Path,
    plan: FilePlan,
    tensors: Iterator[Iterable[Tensor]],
    *,
    card: str | None = None,
) -> None:
    """Write a folder from weights that come as `write_weights` takes them, by one rename.

    Raises OSError where it cannot be written; nothing is left of it then.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write_weights(temporary, plan, tensors)
        _write_rest(temporary, config, tokenizer_dir, plan.dtype, card)
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
    except OSError as error:
        raise OSError(f"{target}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _whole(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A parameter in full on the CPU, gathered by all ranks, in the dtype that is sent and written."""
    value = value.to(dtype)
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.cpu()


def _write_rest(
    folder: Path, config: Qwen3Config, tokenizer_dir: str | Path, dtype: torch.dtype, card: str | None
) -> None:
    config = copy.deepcopy(config)
    config.dtype = dtype
    # Where transformers before 5 looks for it; without it they would take 10,000 and say nothing.
    rope: Any = config.rope_parameters
    config.rope_theta = rope["rope_theta"]
    config.save_pretrained(folder)
    GenerationConfig(eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id).save_pretrained(folder)
    if card is not None:
        (folder / _CARD_FILE).write_text(card, encoding="utf-8")
    for name in _TOKENIZER_FILES:
        source = Path(tokenizer_dir) / name
        if source.is_file():
            shutil.copyfile(source, folder / name)
