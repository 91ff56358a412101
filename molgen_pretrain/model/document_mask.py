"""Document mask: every unit of a packed row is attended as if it were alone.

Two ways to the same result. Flash attention over sequences of varying length is told where units begin and
computes nothing across them. Where it has no kernel (a CPU, float32, an odd head_dim) the mask is spelled out
for every pair of positions, once per forward, and scaled_dot_product_attention takes it in every layer.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

DOCUMENT_ATTENTION = "molgen_documents"  # its name among transformers' attention functions

_CAUSAL: dict[str, Any] = {"window_size": (-1, 0)}
# Newer torch wants to be told of fewer key and value heads than query heads; the kernel of 2.11 just takes them.
if "enable_gqa" in inspect.signature(varlen_attn).parameters:
    _CAUSAL["enable_gqa"] = True


def register_document_attention() -> None:
    """Make DOCUMENT_ATTENTION known to transformers, whose models look attention up by name."""
    AttentionInterface.register(DOCUMENT_ATTENTION, document_attention)
    AttentionMaskInterface.register(DOCUMENT_ATTENTION, sdpa_mask)


def has_varlen_kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether flash attention over varying lengths runs on this device with queries of this kind."""
    return (
        device.type == "cuda"
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and dtype in (torch.bfloat16, torch.float16)
        and head_dim <= 256
        and head_dim % 8 == 0
    )


def document_arguments(position_ids: Tensor, *, varlen: bool) -> dict[str, Any]:
    """What a decoder's forward takes so that attention is causal and stays within a unit.

    position_ids int64 [batch, seq], 0 where a unit begins; so does each row. With `varlen` the device is waited
    for, once: the kernel takes the borders as a list, whose length only the device knows.
    """
    if not varlen:
        return {"position_ids": position_ids, "attention_mask": {"full_attention": block_causal_mask(position_ids)}}
    begins = position_ids == 0
    begins[:, 0] = True
    borders = F.pad(begins.flatten().nonzero().flatten(), (0, 1), value=begins.numel())
    return {
        "position_ids": position_ids,
        "attention_mask": {"full_attention": None},
        "cu_seq_lens_q": borders.int(),  # [units + 1]
        # An upper bound, since the true maximum would differ from batch to batch, which compiled blocks dislike.
        "max_length_q": position_ids.shape[1],
    }


def block_causal_mask(position_ids: Tensor) -> Tensor:
    """bool [batch, 1, seq, seq], True where a query (dim 2) may see a key (dim 3): the same unit, not later."""
    unit = (position_ids == 0).cumsum(dim=1)  # [batch, seq]
    same_unit = unit[:, None, :, None] == unit[:, None, None, :]
    return same_unit.tril_()


def document_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention by the borders of units, if given; else by the mask; else plainly causal.

    query [batch, heads, seq, head_dim], key and value with as many or fewer heads; returns [batch, seq, heads,
    head_dim]. Called by transformers' layers with the arguments of `document_arguments`.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    # Under autocast the norms of queries and keys give float32: sdpa would be cast, this kernel is not.
    query_rows, key_rows, value_rows = (
        tensor.transpose(1, 2).flatten(0, 1).to(value.dtype)  # [batch * seq, heads, head_dim]
        for tensor in (query, key, value)
    )
    borders, longest = cu_seq_lens_q, max_length_q
    attended: Any = varlen_attn(
        query_rows, key_rows, value_rows, borders, borders, longest, longest, scale=scaling, **_CAUSAL
    )
    return attended.unflatten(0, (query.shape[0], query.shape[2])), None
