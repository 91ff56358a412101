"""The loss by token class: SMILES, tags, coordinates, the rest of the conformer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from molgen_pretrain.data.token_classes import TOKEN_CLASSES


def named_classes(prefix: str, values: Iterable[Any]) -> dict[str, Any]:
    """A value for each class as `prefix/<class>`."""
    return {f"{prefix}/{name}": value for name, value in zip(TOKEN_CLASSES, values, strict=True)}


def class_row(counts: Mapping[str, float], sums: Mapping[str, float]) -> dict[str, float]:
    """`loss/<class>` (nats per token) and `tokens_frac/<class>` from summed `tokens/...` and `loss/...`.

    The losses weighted by the fractions add up to the loss of all tokens. A class without a token has no loss.
    """
    tokens = {name: counts[f"tokens/{name}"] for name in TOKEN_CLASSES}
    total = sum(tokens.values())
    losses = {f"loss/{name}": sums[f"loss/{name}"] / count for name, count in tokens.items() if count}
    return {**losses, **{f"tokens_frac/{name}": count / total for name, count in tokens.items()}}
