"""Ways to group parameters by their names alone, for a decoder in the names of Hugging Face."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Preset = Literal["none", "by_type", "layerwise"]
ParamType = Literal["embeddings", "attention", "feed_forward", "norms", "biases", "other"]

_BLOCK = re.compile(r"(?:^|\.)layers\.(\d+)\.")


@dataclass(frozen=True)
class Assignment:
    """The group of a parameter and the factors that it takes there."""

    group: str
    lr_scale: float = 1.0
    wd_scale: float = 1.0


def parameter_type(name: str, ndim: int) -> ParamType:
    """What a parameter is for. The output head counts as embedding (and often is the same matrix)."""
    parts = name.split(".")
    if parts[-1] == "bias":
        return "biases"
    if ndim <= 1:
        return "norms"
    if "lm_head" in parts or any("embed" in part for part in parts):
        return "embeddings"
    if any("attn" in part or "attention" in part for part in parts):
        return "attention"
    if any(part in ("mlp", "feed_forward", "ffn") for part in parts):
        return "feed_forward"
    return "other"


def is_vector(name: str, ndim: int) -> bool:
    """A norm or a bias: what many recipes leave without weight decay."""
    return parameter_type(name, ndim) in ("norms", "biases")


def is_hidden_matrix(name: str, ndim: int) -> bool:
    """A matrix between hidden states: what Muon is for, unlike embeddings, head, norms and biases."""
    return ndim == 2 and parameter_type(name, ndim) != "embeddings"


def by_type(ndims: Mapping[str, int], scales: Mapping[str, tuple[float, float]]) -> dict[str, Assignment]:
    """A group per type of parameter, with the (lr, weight decay) scales given for it; (1, 1) where none are."""
    types = {name: parameter_type(name, ndim) for name, ndim in ndims.items()}
    return {name: Assignment(kind, *scales.get(kind, (1.0, 1.0))) for name, kind in types.items()}


def layerwise(ndims: Mapping[str, int], decay_rate: float) -> dict[str, Assignment]:
    """lr_scale = decay_rate ** depth from the top: head and final norm 0, last block 1, ..., embedding deepest.

    A tied head is the embedding. Source: layer-wise decay of Howard and Ruder 2018, arXiv 1801.06146, with the
    rate given per block.
    """
    blocks = {name: int(found[1]) for name in ndims if (found := _BLOCK.search(name))}
    count = max(blocks.values(), default=-1) + 1
    digits = len(str(max(count - 1, 0)))
    assigned = {}
    for name in ndims:
        if name in blocks:
            group, depth = f"layer_{blocks[name]:0{digits}d}", count - blocks[name]
        elif "lm_head" not in name and "embed" in name:
            group, depth = "embeddings", count + 1
        else:
            group, depth = "top", 0
        assigned[name] = Assignment(group, lr_scale=decay_rate**depth)
    return assigned
