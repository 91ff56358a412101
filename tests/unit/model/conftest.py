"""Snapshots as transformers writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 48,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    "initializer_range": 0.3,  # logits of about one, so that 1e-5 of them is a small difference
    "tie_word_embeddings": True,
}

MakeSnapshot = Callable[..., tuple[Path, Qwen3ForCausalLM]]


@pytest.fixture
def make_snapshot(tmp_path: Path) -> MakeSnapshot:
    """`make_snapshot(name, dtype=..., max_shard_size=..., **sizes)`: (its folder, transformers' model)."""

    def make(
        name: str = "snapshot", *, dtype: torch.dtype = torch.float32, max_shard_size: str = "4GB", **sizes: object
    ) -> tuple[Path, Qwen3ForCausalLM]:
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(Qwen3Config(**{**SIZES, **sizes})).to(dtype)
        model.save_pretrained(tmp_path / name, max_shard_size=max_shard_size)
        return tmp_path / name, model

    return make
