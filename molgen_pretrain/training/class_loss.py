"""The loss by token class: SMILES, tags, coordinates, the rest of the conformer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from molgen_pretrain.data.batch import Batch
from molgen_pretrain.data.token_classes import TOKEN_CLASSES
from molgen_pretrain.model.loss import IGNORE_INDEX


def class_counts(batch: Batch) -> Tensor:
    """Trained tokens of each class, int64 [classes], where the batch knows its classes."""
    assert batch.token_classes is not None
    trained = batch.token_classes[batch.labels != IGNORE_INDEX]
    return torch.bincount(trained.long(), minlength=len(TOKEN_CLASSES))


def named_sums(prefix: str, values: Iterable[Tensor]) -> dict[str, Tensor]:
    """The total of vectors [classes] as one scalar per class, ready to be summed over ranks."""
    total = torch.stack(list(values)).double().sum(dim=0)
    return {f"{prefix}/{name}": total[number] for number, name in enumerate(TOKEN_CLASSES)}


def class_row(counts: Mapping[str, float], sums: Mapping[str, float]) -> dict[str, float]:
    """`loss/<class>` (nats per token) and `tokens_frac/<class>` from summed `tokens/...` and `loss/...`.

    The losses weighted by the fractions add up to the loss of all tokens. A class without a token has no loss.
    """
    tokens = {name: counts[f"tokens/{name}"] for name in TOKEN_CLASSES}
    total = sum(tokens.values())
    losses = {f"loss/{name}": sums[f"loss/{name}"] / count for name, count in tokens.items() if count}
    return {**losses, **{f"tokens_frac/{name}": count / total for name, count in tokens.items()}}
