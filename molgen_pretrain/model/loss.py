"""Next-token cross entropy of the model's head, summed in total and by token class."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from molgen_pretrain.model.linear_cross_entropy import IGNORE_INDEX, linear_cross_entropy
from molgen_pretrain.model.loss_kernels import LossKernel, default_chunk_tokens


class LossSums(NamedTuple):
    """Sums over tokens of -log p(label): of all tokens, to train by, and of each class, to look at."""

    total: Tensor  # float32 scalar
    by_class: Tensor | None  # float32 [classes], detached; None where no classes are given


def token_loss_sum(
    head: nn.Linear,
    hidden: Tensor,
    labels: Tensor,
    *,
    kernel: LossKernel = "fused",
    chunk_tokens: int | None = None,
    trained_tokens: int | None = None,
    token_classes: Tensor | None = None,
    classes: int = 0,
) -> LossSums:
    """Sums over the tokens with a label of -log p(label).

    hidden [batch, seq, hidden_size]; labels int64 [batch, seq], IGNORE_INDEX where nothing is predicted;
    token_classes, if given, integers [batch, seq] in 0 to classes - 1: the class of each label.

    `kernel` says how far logits, [tokens, vocab], come into being:

    - fused: those of `chunk_tokens` tokens at a time, and their gradients with them. No more work than plain, and the
      fastest. It reads the head's weight without calling the head, which must have no bias (ValueError) and be
      whole on this rank. On a GPU it passes over tokens without a label if it is told `trained_tokens`, how many
      have one.
    - checkpointed: those of `chunk_tokens` tokens at a time, and again in the backward, at the price of one more
      matrix product. It calls the head, so that tensor parallelism may have a part in it.
    - plain: all of them, whatever `chunk_tokens` is.

    chunk_tokens: None for `default_chunk_tokens`, 0 for all tokens in one chunk.
    """
    flat_hidden, flat_labels = hidden.flatten(0, 1), labels.flatten()  # [tokens, hidden_size], [tokens]
    if chunk_tokens is None:
        chunk_tokens = default_chunk_tokens(head.out_features, device_type=hidden.device.type)
    if kernel == "fused":
        if head.bias is not None:
            raise ValueError("the fused loss kernel takes a head without bias")
        total, losses = linear_cross_entropy(
            flat_hidden, head.weight, flat_labels, chunk_tokens=chunk_tokens, trained_tokens=trained_tokens
        )
    elif kernel == "checkpointed" and 0 < chunk_tokens < flat_labels.numel():
        chunks = zip(flat_hidden.split(chunk_tokens), flat_labels.split(chunk_tokens), strict=True)
        losses = torch.cat([checkpoint(_losses, head, *chunk, use_reentrant=False) for chunk in chunks])
        total = losses.sum()
    else:
        losses = _losses(head, flat_hidden, flat_labels)
        total = losses.sum()
    if token_classes is None:
        return LossSums(total, None)
    # A comparison instead of a scatter: the same sums in every run on a GPU too, where scattering adds in any order.
    members = token_classes.flatten() == torch.arange(classes, device=losses.device).unsqueeze(1)  # [classes, tokens]
    return LossSums(total, (losses.detach() * members).sum(dim=1))


def _losses(head: nn.Linear, hidden: Tensor, labels: Tensor) -> Tensor:
    """Losses [tokens], 0 where there is no label."""
    return F.cross_entropy(head(hidden).float(), labels, ignore_index=IGNORE_INDEX, reduction="none")
