"""The ways to compute the head's loss, and how finely it is cut. Loads no torch."""

from __future__ import annotations

from typing import Literal

LossKernel = Literal["fused", "checkpointed", "plain"]  # see `loss.token_loss_sum`


def default_chunk_tokens(vocab_size: int, *, device_type: str) -> int:
    """How many tokens' logits should exist at a time.

    On a CPU products reach their full speed with 512 tokens, and fewer than 2**20 logits are not worth a chunk. A
    GPU wants more: with each chunk it reads and writes the gradient of the whole weight.
    """
    if device_type == "cpu":
        return max(512, 2**20 // vocab_size)
    return max(4096, 2**29 // vocab_size)
