"""Next-token cross entropy on raw logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

IGNORE_INDEX = -100


def token_loss_sum(head: nn.Module, hidden: Tensor, labels: Tensor, *, chunk_tokens: int = 0) -> Tensor:
    """Sum over the tokens with a label of -log p(label), float32 scalar.

    hidden [batch, seq, hidden_size]; labels int64 [batch, seq], IGNORE_INDEX where nothing is predicted. With
    `chunk_tokens` > 0 only that many tokens' logits exist at a time: they are computed again in the backward,
    one more head matmul for memory that does not grow with batch times vocabulary.
    """
    flat_hidden, flat_labels = hidden.flatten(0, 1), labels.flatten()  # [tokens, hidden_size], [tokens]
    tokens = flat_labels.numel()
    if chunk_tokens <= 0 or chunk_tokens >= tokens:
        return _loss_sum(head, flat_hidden, flat_labels)
    total = flat_hidden.new_zeros((), dtype=torch.float32)
    for chunk_hidden, chunk_labels in zip(
        flat_hidden.split(chunk_tokens), flat_labels.split(chunk_tokens), strict=True
    ):
        total = total + checkpoint(_loss_sum, head, chunk_hidden, chunk_labels, use_reentrant=False)
    return total


def _loss_sum(head: nn.Module, hidden: Tensor, labels: Tensor) -> Tensor:
    logits = head(hidden).float()  # [tokens, vocab]
    return F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
