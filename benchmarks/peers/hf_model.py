"""What both Hugging Face peers have in common: the model as transformers makes it, and equal data as it takes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM


def new_model(sizes: dict[str, Any], device: str) -> Qwen3ForCausalLM:
    """transformers' own model with random weights, float32."""
    torch.manual_seed(0)
    with torch.device(device):
        return Qwen3ForCausalLM(Qwen3Config(**sizes))


def packed_sequences(path: str) -> Iterator[dict[str, Tensor]]:
    """Whole sequences; labels are not shifted, which transformers does itself."""
    data = load_file(path)
    for ids, shifted in zip(data["input_ids"], data["labels"], strict=True):
        yield {"input_ids": ids, "labels": torch.cat([shifted.new_full((1,), -100), shifted[:-1]])}


def units(path: str, seq_len: int) -> Iterator[dict[str, list[int]]]:
    """One unit after the other, cut at `seq_len`."""
    data = load_file(path)
    for ids in data["ids"].split(data["lengths"].tolist()):
        yield {"input_ids": ids[:seq_len].tolist()}


def per_step(tokens_of_rows: list[int], spec: dict[str, Any]) -> list[int]:
    """Tokens of each step, from those of each row."""
    batch = spec["batch"]
    return [sum(tokens_of_rows[step * batch : (step + 1) * batch]) for step in range(spec["steps"])]
