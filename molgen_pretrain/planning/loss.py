"""Memory of the head's cross entropy."""

from __future__ import annotations

from dataclasses import dataclass

from molgen_pretrain.model.loss_kernels import LossKernel
from molgen_pretrain.planning.activations import Precision, element_size

# The cross entropy of float32 logits holds, at its highest, its log-probabilities and two gradients as large.
_BYTES_PER_LOGIT = 12


@dataclass(frozen=True)
class Logits:
    """The head's product on one rank: `tokens` of a micro-batch by the vocabulary, `chunk` tokens at a time.

    `weights`: how many the rank has, of all rows or, under tensor parallelism, of its own.
    """

    tokens: int
    chunk: int
    vocabulary: int
    hidden: int
    weights: int


def loss_bytes(kernel: LossKernel, logits: Logits, precision: Precision) -> float:
    """Most that forward and backward of the loss take besides what is there before."""
    cast = 2.0 * logits.weights if precision == "autocast" else 0.0  # the head's weight in bfloat16
    if kernel == "plain":
        return cast + _BYTES_PER_LOGIT * logits.tokens * logits.vocabulary
    gradient = head_gradient_bytes(logits, precision)
    if kernel == "checkpointed":
        # The chunks' gradients of the weight are added up: the sum so far, and the newest, made from its logits' own.
        chunk = logits.chunk * logits.vocabulary
        return cast + max(_BYTES_PER_LOGIT * chunk + gradient, element_size(precision) * chunk + 2 * gradient)
    # Both gradients are made with the loss, that of the weight in float32; its input is copied without the tokens
    # that have no label, under autocast once more in bfloat16.
    size = element_size(precision)
    copies = {"float32": 4, "autocast": 4 + 2, "bfloat16": 2}[precision]
    hidden = (copies + size) * logits.tokens * logits.hidden
    return cast + 4.0 * logits.weights + hidden + size * logits.chunk * logits.vocabulary


def head_gradient_bytes(logits: Logits, precision: Precision) -> float:
    """The gradient of the head's weight, in the weight's own dtype."""
    return (2.0 if precision == "bfloat16" else 4.0) * logits.weights
