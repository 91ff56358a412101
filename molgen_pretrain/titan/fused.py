"""The projection that TorchTitan trains fused: q, k and v in one matrix.

Its rows, and so those of the optimizer's moments, are [kv head, q heads of its group + k + v, head_dim] (TorchTitan
0.3.0, `fuse_qkv=True`, its default). Weights are saved as three matrices all the same, moments as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from molgen_pretrain.titan.lazy import LazyTensor
from molgen_pretrain.titan.sizes import Qwen3Sizes


def split_fused(fused: LazyTensor, sizes: Qwen3Sizes) -> tuple[LazyTensor, LazyTensor, LazyTensor]:
    """q, k and v out of fused rows; three times the tensor itself where it has another shape than the sizes ask for."""
    kv_heads, head_dim = sizes.num_key_value_heads, sizes.head_dim
    group = sizes.num_attention_heads // kv_heads
    rest = fused.shape[1:]
    if fused.shape[:1] != (kv_heads * (group + 2) * head_dim,):
        return fused, fused, fused

    def part(first: int, count: int) -> LazyTensor:
        def read() -> Tensor:
            grouped = fused.read().view(kv_heads, group + 2, head_dim, *rest)
            return grouped[:, first : first + count].reshape(-1, *rest).clone()

        return LazyTensor(fused.dtype, (kv_heads * count * head_dim, *rest), read)

    return part(0, group), part(group, 1), part(group + 1, 1)


def join_fused(qkv: Sequence[LazyTensor], sizes: Qwen3Sizes) -> LazyTensor:
    """The inverse of `split_fused`."""
    rest = qkv[0].shape[1:]

    def read() -> Tensor:
        grouped = [part.read().view(sizes.num_key_value_heads, -1, *rest) for part in qkv]
        return torch.cat(grouped, dim=1).view(-1, *rest)

    return LazyTensor(qkv[0].dtype, (sum(part.shape[0] for part in qkv), *rest), read)
