"""What the two TorchTitan tools say of a model and its optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from molgen_pretrain.metrics.formats import format_bytes
from molgen_pretrain.titan.checkpoint import ADAMW_SETTINGS
from molgen_pretrain.titan.lazy import LazyTensor
from molgen_pretrain.titan.sizes import Qwen3Sizes
from molgen_pretrain.tools.titan_resume import groups_of


def describe_model(weights: Mapping[str, LazyTensor], sizes: Qwen3Sizes) -> str:
    """Parameters, size and what the sizes are."""
    parameters = sum(math.prod(weight.shape) for weight in weights.values())
    dtypes = ", ".join(sorted({str(weight.dtype).removeprefix("torch.") for weight in weights.values()}))
    head = "tied head" if sizes.tie_word_embeddings else "head of its own"
    return (
        f"{parameters:,} parameters, {format_bytes(sum(weight.nbytes for weight in weights.values()))} ({dtypes}), "
        f"{sizes.num_hidden_layers} layers of {sizes.hidden_size}, {sizes.vocab_size:,} rows, {head}"
    )


def describe_settings(settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each set of AdamW's settings that weights were trained with."""
    lines = []
    for group in groups_of(settings, settings):
        shown = ", ".join(f"{key}={group[key]}" for key in ADAMW_SETTINGS if key in group)
        lines.append(f"{shown}: {len(group['params'])} tensors")
    return lines
