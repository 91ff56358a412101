"""Attention on a CPU by products of matrices, a block of queries at a time.

torch's `scaled_dot_product_attention` has a flash kernel for CPUs that gains little from bfloat16; products of
matrices gain much. The keys after a block of queries are left out, and so are those before the units that the
block belongs to: a document mask makes it faster, and is never spelled out for all pairs of positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Smaller blocks leave out more keys, larger ones make better products. Of 64, 128, 256 and 512 this one was the
# fastest or nearly so for heads of 32, 64 and 128 at seq_len 512 and 2048.
_BLOCK_QUERIES = 128


@torch.library.custom_op("molgen_pretrain::blocked_attention", mutates_args=())
def blocked_attention(query: Tensor, key: Tensor, value: Tensor, position_ids: Tensor, scale: float) -> Tensor:
    """softmax(scale * query key^T) value, causal and within units.

    query [batch, heads, seq, head_dim], key and value of the same dtype with as many or fewer heads, all on a CPU;
    position_ids int64 [batch or 1, seq], the place within its unit, 0 where one begins, as each row does. Returns
    [batch, heads, seq, head_dim]. The backward computes the weights of attention again instead of keeping them.
    """
    kv_heads = key.shape[1]
    scaled, attended = _grouped(query * scale, kv_heads), _empty_like_heads(query)
    of_groups = _grouped(attended, kv_heads)
    for block in _blocks(position_ids, query.dtype):
        weights = _weights(block.rows(scaled), key, block)
        block.put(of_groups, weights @ value[:, :, block.keys])
    return attended


@torch.library.custom_op("molgen_pretrain::blocked_attention_backward", mutates_args=())
def _gradients(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, position_ids: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    kv_heads = key.shape[1]
    scaled, of_attended, of_query = (
        _grouped(query * scale, kv_heads),
        _grouped(gradient, kv_heads),
        _empty_like_heads(query),
    )
    of_groups = _grouped(of_query, kv_heads)
    # Many blocks add to the same keys: in bfloat16 the sums would lose what the later ones add.
    of_key, of_value = (torch.zeros_like(tensor, dtype=torch.float32) for tensor in (key, value))
    for block in _blocks(position_ids, query.dtype):
        rows, of_rows = block.rows(scaled), block.rows(of_attended)
        weights = _weights(rows, key, block)
        of_weights = of_rows @ value[:, :, block.keys].transpose(-1, -2)
        of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        block.put(of_groups, (of_scores @ key[:, :, block.keys]).mul_(scale))
        of_key[:, :, block.keys] += of_scores.transpose(-1, -2) @ rows
        of_value[:, :, block.keys] += weights.transpose(-1, -2) @ of_rows
    return of_query, of_key.to(key.dtype), of_value.to(value.dtype)


class _Block(NamedTuple):
    """Queries that are attended at once, and the keys that any of them sees."""

    queries: slice
    keys: slice
    hidden_from: int  # all queries see the keys before this one of `keys`
    penalties: Tensor  # [batch or 1, 1, 1, queries, keys from there on]: 0 where a key is seen, else the lowest number

    def rows(self, grouped: Tensor) -> Tensor:
        """[batch, kv_heads, group, seq, head_dim] -> [batch, kv_heads, group * queries, head_dim]"""
        return grouped[:, :, :, self.queries].flatten(2, 3)

    def put(self, grouped: Tensor, rows: Tensor) -> None:
        """The reverse: write the rows of this block."""
        grouped[:, :, :, self.queries] = rows.unflatten(2, (grouped.shape[2], -1))


def _blocks(position_ids: Tensor, dtype: torch.dtype) -> Iterator[_Block]:
    places = torch.arange(position_ids.shape[1])
    begins = places - position_ids  # [batch or 1, seq], where the unit of a position begins
    for first in range(0, len(places), _BLOCK_QUERIES):
        queries = slice(first, min(first + _BLOCK_QUERIES, len(places)))
        of_queries = begins[:, queries]
        # Whole blocks of keys: the library of a CPU keeps memory for each shape of a product that it has seen.
        first_key = int(of_queries.min()) // _BLOCK_QUERIES * _BLOCK_QUERIES
        hidden_from = first if int(of_queries.max()) <= first_key else first_key
        keys = places[hidden_from : queries.stop]
        hidden = (keys > places[queries, None]) | (keys < of_queries[:, :, None])
        # To be added to scores: in bfloat16 a tenth of the time that filling in infinities takes, for the same weights.
        penalties = hidden[:, None, None].to(dtype).mul_(torch.finfo(dtype).min)
        yield _Block(queries, slice(first_key, queries.stop), hidden_from - first_key, penalties)


def _weights(rows: Tensor, key: Tensor, block: _Block) -> Tensor:
    """What each query gives to each key, [batch, kv_heads, group * queries, keys]."""
    scores = rows @ key[:, :, block.keys].transpose(-1, -2)
    by_query = scores.unflatten(2, (-1, block.penalties.shape[3]))
    by_query[..., block.hidden_from :] += block.penalties
    return scores.softmax(dim=-1)


def _grouped(heads: Tensor, kv_heads: int) -> Tensor:
    """[batch, heads, seq, head_dim] -> [batch, kv_heads, group, seq, head_dim], a view"""
    return heads.unflatten(1, (kv_heads, -1))


def _empty_like_heads(query: Tensor) -> Tensor:
    """With the heads of a position side by side in memory, as the projections take them."""
    batch, heads, seq, head_dim = query.shape
    return query.new_empty(batch, seq, heads, head_dim).transpose(1, 2)


@blocked_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, position_ids: Tensor, scale: float) -> Tensor:
    return _empty_like_heads(query)


@_gradients.register_fake
def _(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, position_ids: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_like_heads(query), torch.empty_like(key), torch.empty_like(value)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, float], output: Tensor) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return *_gradients(gradient, *ctx.saved_tensors, ctx.scale), None, None


blocked_attention.register_autograd(_backward, setup_context=_keep)
