"""Cross entropy of a linear head without its logits: gradients are made chunk by chunk, while the logits are there.

The forward of a chunk of tokens computes its logits, turns them into the losses and, in place, into the gradient of
the logits, and multiplies that on into the gradients of hidden states and weight: three matrix products, where
computing the logits again in the backward takes four. What is kept for the backward has the size of hidden states
and weight, and is only scaled there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE_INDEX = -100

# Elements per thread of a CPU, 2 MiB each, that several passes go over while they are in its cache: probabilities in
# float32, and weight gradients of lower precision on their way to float32.
_CACHED_PROBABILITIES = 2**19
_CACHED_GRADIENTS = 2**20
# Of the weight's gradient, where a GPU has to make each on its own before it can be added.
_GPU_PARTS = 8
# The tokens to compute are rounded up to a multiple of this: few shapes, all good ones for matrix products. A CPU's
# library keeps half a megabyte for each shape that it has seen.
_TOKENS = 64


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, chunk_tokens: int, trained_tokens: int | None = None
) -> tuple[Tensor, Tensor]:
    """The sum of -log softmax(hidden @ weight.T)[label] over tokens with a label, and each token's, detached.

    hidden [tokens, hidden_size]; weight [vocab, hidden_size]; labels int64 [tokens], IGNORE_INDEX where there is
    none. The sum is a scalar, the losses are [tokens] with 0 where there is no label; both float32 (float64 for
    float64). Logits exist for `chunk_tokens` tokens at a time (0: for all at once), in autocast's type where it is
    on, else in the weight's; the weight's gradient is summed up over chunks in float32. Tokens without a label are
    left out where that takes no waiting for a device: on a CPU, and elsewhere if `trained_tokens`, the number of
    labels, is given. The sum can be differentiated once.
    """
    kind = weight.device.type
    casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # not for "meta"
    dtype = torch.get_autocast_dtype(kind) if casts else weight.dtype
    with_gradient = torch.is_grad_enabled()
    return _LinearCrossEntropy.apply(hidden, weight, labels, chunk_tokens, trained_tokens, dtype, with_gradient)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        chunk_tokens: int,
        trained_tokens: int | None,
        dtype: torch.dtype,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        needs = [with_gradient and needed for needed in ctx.needs_input_grad[:2]]
        order = _trained_first(labels, trained_tokens)
        chosen = (hidden, labels) if order is None else (hidden[order], labels[order])
        losses, *gradients = _by_chunks(chosen[0].to(dtype), weight.to(dtype), chosen[1], chunk_tokens, needs)
        if order is not None:
            losses = losses.new_zeros(labels.shape).index_copy_(0, order, losses)
            if gradients[0] is not None:
                gradients[0] = gradients[0].new_zeros(hidden.shape).index_copy_(0, order, gradients[0])
        ctx.save_for_backward(*gradients)
        ctx.dtypes = hidden.dtype, weight.dtype
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = (
            # In place where it can be; autograd sees that and refuses a second backward through a kept graph.
            None if gradient is None else gradient.to(torch.promote_types(gradient.dtype, dtype)).mul_(scale).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return hidden, weight, None, None, None, None, None


def _trained_first(labels: Tensor, trained_tokens: int | None) -> Tensor | None:
    """Indices of the tokens to compute, first all that have a label, then a few others; None for all as they are."""
    ignored = labels == IGNORE_INDEX
    if labels.is_cpu:
        trained_tokens = labels.numel() - int(ignored.sum())
    if trained_tokens is None or trained_tokens == labels.numel():
        return None
    tokens = -(-trained_tokens // _TOKENS) * _TOKENS
    # The size of what sorting returns is known beforehand, unlike that of a search, so that nothing waits for it.
    return ignored.to(torch.uint8).argsort(stable=True)[:tokens]


def _by_chunks(
    hidden: Tensor, weight: Tensor, labels: Tensor, chunk_tokens: int, needs: list[bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The tokens' losses, and the gradients of their sum with respect to hidden states and weight, if needed."""
    tokens, exact = len(labels), torch.promote_types(weight.dtype, torch.float32)
    size = min(chunk_tokens, tokens) if chunk_tokens > 0 else tokens
    losses = torch.empty(tokens, dtype=exact, device=hidden.device)
    hidden_gradient = torch.empty_like(hidden) if needs[0] else None
    weight_gradient = torch.zeros_like(weight, dtype=exact) if needs[1] else None
    logits = hidden.new_empty(size, len(weight))
    for begin in range(0, tokens, max(size, 1)):
        chunk = slice(begin, min(begin + size, tokens))
        part = torch.mm(hidden[chunk], weight.t(), out=logits[: chunk.stop - begin])
        losses[chunk] = _losses(logits, labels[chunk], with_gradient=any(needs))
        if hidden_gradient is not None:
            torch.mm(part, weight, out=hidden_gradient[chunk])
        if weight_gradient is not None:
            _add_product(weight_gradient, part.t(), hidden[chunk])
    return losses, hidden_gradient, weight_gradient


def _losses(logits: Tensor, labels: Tensor, *, with_gradient: bool) -> Tensor:
    """Losses [tokens] of the first of the rows of logits, which become the gradient of their sum, if asked for."""
    if logits.is_cpu:
        trained = int((labels != IGNORE_INDEX).sum())  # which come first
        logits[trained : len(labels)] = 0
        losses = _losses_in_cache(logits[:trained], labels[:trained], with_gradient)
        return F.pad(losses, (0, len(labels) - trained))
    # The last chunk is filled up, with rows that count for nothing: every chunk has the shape that was compiled for.
    padded = F.pad(labels, (0, len(logits) - len(labels)), value=IGNORE_INDEX)
    compute = _compiled_losses() if logits.is_cuda else _losses_in_one_kernel
    return compute(logits, padded, with_gradient)[: len(labels)]


def _losses_in_cache(logits: Tensor, labels: Tensor, with_gradient: bool) -> Tensor:
    """Every token has a label. A few rows at a time, so that a CPU's passes over them read its cache."""
    exact = torch.promote_types(logits.dtype, torch.float32)
    rows = torch.get_num_threads() * max(1, _CACHED_PROBABILITIES // logits.shape[1])
    buffer = torch.empty(min(rows, len(labels)), logits.shape[1], dtype=exact)
    losses = []
    for block, targets in zip(logits.split(rows), labels.unsqueeze(1).split(rows), strict=True):
        probabilities = torch.softmax(block, 1, dtype=exact, out=buffer[: len(block)])
        # The most probable token gives the normaliser away, even where the label's own probability is rounded to 0.
        normaliser = block.amax(1, keepdim=True) - probabilities.amax(1, keepdim=True).log()
        losses.append(normaliser - block.gather(1, targets))
        if with_gradient:
            block.copy_(probabilities.scatter_add_(1, targets, torch.full_like(normaliser, -1.0)))
    return torch.cat(losses).squeeze(1)


def _losses_in_one_kernel(logits: Tensor, labels: Tensor, with_gradient: bool) -> Tensor:
    """To be compiled, since each of its steps by itself is a pass over memory. Labels may be missing."""
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    normaliser = exact.logsumexp(1, keepdim=True)
    targets, trained = labels.unsqueeze(1), (labels != IGNORE_INDEX).unsqueeze(1)
    losses = torch.where(trained, normaliser - exact.gather(1, targets.clamp(min=0)), 0.0)
    if with_gradient:
        is_target = torch.arange(logits.shape[1], device=logits.device) == targets
        logits.copy_(torch.where(trained, (exact - normaliser).exp() - is_target.to(exact.dtype), 0.0))
    return losses.squeeze(1)


@cache
def _compiled_losses() -> Callable[[Tensor, Tensor, bool], Tensor]:
    return torch.compile(_losses_in_one_kernel, fullgraph=True, dynamic=False)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, where total is float32 and the others may be of lower precision."""
    if total.dtype == left.dtype:
        torch.addmm(total, left, right, out=total)
    elif total.is_cuda and _adds_to_float32(left.dtype):
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    elif total.is_cuda:
        rows = -(-len(total) // _GPU_PARTS)
        for total_rows, left_rows in zip(total.split(rows), left.split(rows), strict=True):
            total_rows.add_(torch.mm(left_rows, right, out_dtype=total.dtype))
    else:
        rows = torch.get_num_threads() * max(1, _CACHED_GRADIENTS // total.shape[1])
        for total_rows, left_rows in zip(total.split(rows), left.split(rows), strict=True):
            total_rows.add_(left_rows @ right)


@cache
def _adds_to_float32(dtype: torch.dtype) -> bool:
    """Whether CUDA adds products of this type to a float32 sum: in older versions of torch both must be alike."""
    square = torch.zeros(16, 16, dtype=dtype, device="cuda")
    try:
        torch.addmm(square.float(), square, square, out_dtype=torch.float32)
    except RuntimeError:
        return False
    return True
