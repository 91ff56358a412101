"""Attention of packed rows: every unit is attended as if it were alone.

Three ways to the same result. Flash attention over sequences of varying length (CUDA) and attention in blocks (CPU)
are told where units begin and compute nothing across them. Where neither is to be had (float32 on CUDA, an odd
head_dim) the mask is spelled out for every pair of positions, once per forward, and scaled_dot_product_attention
takes it in every layer. Rows without units are plainly causal, which torch has kernels for; of those it takes the
fastest by itself, on Hopper cuDNN's.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from molgen_pretrain.model.blocked_attention import blocked_attention

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


def causal_arguments() -> dict[str, Any]:
    """What a decoder's forward takes so that attention is causal over the whole row.

    Left to itself transformers looks for units in the positions, which on a GPU waits for the device.
    """
    return {"attention_mask": {"full_attention": None}}


def document_arguments(position_ids: Tensor, *, unit_borders: Tensor | None) -> dict[str, Any]:
    """What a decoder's forward takes so that attention is causal and stays within a unit.

    position_ids int64 [batch, seq], 0 where a unit begins; so does each row. unit_borders, for the kernel of
    `has_varlen_kernel`: int32 [n], the places in the flattened batch where units begin, so also where rows do, and
    after them batch * seq once or more: units of length 0 are legal. Where n is the same for all batches, nothing
    compiled is compiled again; but the kernel's backward has a workspace of 128 rows for each, so n should be tight.
    """
    arguments: dict[str, Any] = {"position_ids": position_ids, **causal_arguments()}
    if unit_borders is not None:
        # An upper bound, since the true maximum would differ from batch to batch, which compiled blocks dislike.
        return {**arguments, "cu_seq_lens_q": unit_borders, "max_length_q": position_ids.shape[1]}
    if position_ids.device.type == "cpu":
        return {**arguments, "unit_positions": position_ids}
    return {**arguments, "attention_mask": {"full_attention": block_causal_mask(position_ids)}}


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
    position_ids: Tensor,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    unit_positions: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention by the borders of units, if given; else by the mask; else plainly causal.

    query [batch, heads, seq, head_dim], key and value with as many or fewer heads; returns [batch, seq, heads,
    head_dim]. Called by the layers of a decoder with the arguments of `document_arguments` or `causal_arguments`.
    """
    # Under autocast the norms of queries and keys give float32: sdpa would be cast, other kernels are not.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if cu_seq_lens_q is not None:
        return _varlen_attention(query, key, value, cu_seq_lens_q, max_length_q, scaling), None
    # In float32 torch's own is 1.1 to 1.4 times as fast, but not where it would compute all pairs for a mask.
    if value.device.type == "cpu" and (unit_positions is not None or value.dtype is torch.bfloat16):
        places = position_ids if unit_positions is None else unit_positions
        return blocked_attention(query, key, value, places, scaling).transpose(1, 2), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


def _varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, borders: Tensor, longest: int, scaling: float
) -> Tensor:
    query_rows, key_rows, value_rows = (
        tensor.transpose(1, 2).flatten(0, 1)  # [batch * seq, heads, head_dim]
        for tensor in (query, key, value)
    )
    attended: Any = varlen_attn(
        query_rows, key_rows, value_rows, borders, borders, longest, longest, scale=scaling, **_CAUSAL
    )
    return attended.unflatten(0, (query.shape[0], query.shape[2]))
