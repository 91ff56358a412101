"""Next-token cross entropy on raw logits, summed in total and by token class."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

IGNORE_INDEX = -100


class LossSums(NamedTuple):
    """Sums over tokens of -log p(label): of all tokens, to train by, and of each class, to look at."""

    total: Tensor  # float32 scalar
    by_class: Tensor | None  # float32 [classes], detached; None where no classes are given


def token_loss_sum(
    head: nn.Module,
    hidden: Tensor,
    labels: Tensor,
    *,
    chunk_tokens: int = 0,
    token_classes: Tensor | None = None,
    classes: int = 0,
) -> LossSums:
    """Sums over the tokens with a label of -log p(label).

    hidden [batch, seq, hidden_size]; labels int64 [batch, seq], IGNORE_INDEX where nothing is predicted;
    token_classes, if given, integers [batch, seq] in 0 to classes - 1: the class of each label. With
    `chunk_tokens` > 0 only that many tokens' logits exist at a time: they are computed again in the backward,
    one more head matmul for memory that does not grow with batch times vocabulary.
    """
    flat_hidden, flat_labels = hidden.flatten(0, 1), labels.flatten()  # [tokens, hidden_size], [tokens]
    flat_classes = None if token_classes is None else token_classes.flatten()
    tokens = flat_labels.numel()
    if chunk_tokens <= 0 or chunk_tokens >= tokens:
        return _loss_sums(head, flat_hidden, flat_labels, flat_classes, classes)
    hidden_chunks, label_chunks = flat_hidden.split(chunk_tokens), flat_labels.split(chunk_tokens)
    class_chunks = [None] * len(label_chunks) if flat_classes is None else flat_classes.split(chunk_tokens)
    # The sums are results of each chunk, never added to from inside: the backward runs the chunk again.
    parts = [
        checkpoint(_loss_sums, head, *chunk, classes, use_reentrant=False)
        for chunk in zip(hidden_chunks, label_chunks, class_chunks, strict=True)
    ]
    total = torch.stack([part.total for part in parts]).sum()
    return LossSums(total, None if flat_classes is None else torch.stack([part.by_class for part in parts]).sum(dim=0))


def _loss_sums(head: nn.Module, hidden: Tensor, labels: Tensor, token_classes: Tensor | None, classes: int) -> LossSums:
    logits = head(hidden).float()  # [tokens, vocab]
    if token_classes is None:
        return LossSums(F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum"), None)
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")  # [tokens], 0 if ignored
    # A comparison instead of a scatter: the same sums in every run on a GPU too, where scattering adds in any order.
    members = token_classes == torch.arange(classes, device=token_classes.device).unsqueeze(1)  # [classes, tokens]
    return LossSums(losses.sum(), (losses.detach() * members).sum(dim=1))
