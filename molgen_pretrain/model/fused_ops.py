"""The element-wise parts of transformers' Qwen3 in fewer passes over memory.

The modules of one model are changed, not transformers' classes: parameters, hooks and exports stay as they are.
SwiGLU is left alone: without a kernel of its own, computing SiLU again in the backward costs what a pass less saves.
Inside compiled blocks the compiler fuses plain formulas by itself, so those are what it is given.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3ForCausalLM, Qwen3RMSNorm

from molgen_pretrain.model.document_mask import document_attention


def fuse_ops(model: Qwen3ForCausalLM) -> None:
    """Let the norms and attention layers of a model compute this way, in place, before it is spread or compiled.

    Results are transformers' to float32 rounding; in bfloat16 they are rounded less often. Attention is by
    `document_attention`, whatever the config names.
    """
    for module in model.modules():
        # A class rather than a forward for each instance: all blocks compile to the same graph.
        if isinstance(module, Qwen3RMSNorm):
            module.__class__ = _FusedNorm
        elif isinstance(module, Qwen3Attention):
            module.__class__ = _FusedAttention


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """hidden / sqrt(mean(hidden^2) + eps) * weight over the last dimension, computed in float32.

    Returns the wider dtype of the two (Zhang and Sennrich 2019, arXiv 1910.07467, equation 4).
    """
    if type(hidden) is Tensor and hidden.device.type == "cpu" and not torch.compiler.is_compiling():
        normed: Tensor = _RMSNorm.apply(hidden, weight, eps)
        return normed
    # One kernel on CUDA, for equal dtypes.
    return F.rms_norm(hidden.to(torch.promote_types(hidden.dtype, weight.dtype)), weight.shape, weight, eps)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + head_dim / 2) of each head by their angles (Su et al. 2021, arXiv 2104.09864).

    heads [batch, heads, seq, head_dim]; cos and sin [batch or 1, seq, head_dim], whose halves are the same.
    Returns the wider dtype.
    """
    half = heads.shape[-1] // 2
    cos, sin = cos[:, None, :, :half], sin[:, None, :, :half]
    heads = heads.to(torch.promote_types(heads.dtype, cos.dtype))
    if torch.compiler.is_compiling():
        first, second = heads.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    turned: Tensor = _Rotation.apply(heads, cos, sin)
    return turned


class _RMSNorm(torch.autograd.Function):
    """Keeps its input and a number per row; torch has no fused kernel for CPUs."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = hidden.float()
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = torch.rsqrt(norm.square_().div_(wide.shape[-1]).add_(eps))
        ctx.save_for_backward(hidden, weight, scale)
        return (wide * scale).mul_(weight).to(torch.promote_types(hidden.dtype, weight.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, weight, scale = ctx.saved_tensors
        gradient, normed = gradient.float(), hidden * scale
        products = gradient * normed
        along = (products @ weight.float()).div_(normed.shape[-1]).unsqueeze(-1)
        of_hidden = (gradient * weight).addcmul_(normed, along, value=-1).mul_(scale)
        return of_hidden.to(hidden.dtype), products.flatten(0, -2).sum(dim=0).to(weight.dtype), None


class _Rotation(torch.autograd.Function):
    """Keeps the angles only: the gradient of a rotation is turned back."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(heads, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(gradient, cos, sin, -1), None, None


def _turn(heads: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    turned = torch.empty_like(heads)
    (first, second), (to_first, to_second) = heads.chunk(2, dim=-1), turned.chunk(2, dim=-1)
    torch.mul(first, cos, out=to_first).addcmul_(second, sin, value=-direction)
    torch.mul(second, cos, out=to_second).addcmul_(first, sin, value=direction)
    return turned


class _FusedNorm(Qwen3RMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return rms_norm(hidden_states, self.weight, self.variance_epsilon)


class _FusedAttention(Qwen3Attention):
    """For training: without cache and dropout."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        query, key, value = (
            # [batch, seq, heads, head_dim]; under tensor parallelism a rank has some of the heads
            projection(hidden_states).unflatten(-1, (-1, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended, _ = document_attention(
            self,
            rotate(self.q_norm(query).transpose(1, 2), *position_embeddings),
            rotate(self.k_norm(key).transpose(1, 2), *position_embeddings),
            value.transpose(1, 2),
            attention_mask,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(attended.flatten(2)), None
