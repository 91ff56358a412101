"""Activation checkpointing: what the backward needs is computed again instead of kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, Literal

import torch
import torch.nn.attention.varlen  # registers the operator that is named below
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

ActivationCheckpointing = Literal["none", "selective", "full"]

# What costs more to compute again than to keep: products of matrices, attention, words between ranks.
_KEPT = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.torch_attn._varlen_attn.default,
    torch.ops._c10d_functional.all_reduce.default,
    torch.ops._c10d_functional.all_gather_into_tensor.default,
}


def checkpoint_activations(block: nn.Module, kind: ActivationCheckpointing) -> None:
    """Let a block keep only its input (full), or also the outputs of matmuls and attention (selective); in place.

    It replaces `forward` of this one module, so hooks (those of FSDP2 among them) stay outside, parameters keep
    their names, and `torch.compile` sees the checkpoint. Results are bit-identical to those without.
    """
    if kind == "none":
        return
    forward: Callable[..., Any] = block.forward
    options: dict[str, Any] = {"use_reentrant": False}
    if kind == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)

    @wraps(forward)
    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, **options, **kwargs)

    block.forward = checkpointed


def _policy(_context: Any, operator: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    keep = operator in _KEPT or operator.namespace == "molgen_pretrain"  # attention on a CPU
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
