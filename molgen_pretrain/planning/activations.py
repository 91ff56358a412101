"""What a block keeps from its forward for its backward, in bytes per token.

Counted on the operators themselves; `tests/unit/planning/test_activations.py` counts again on a real block. With
h the hidden size, a = heads x head_dim, k = key-value heads x head_dim, f the width of the feed-forward:

| what is kept in float32, a number each | transformers' own operators | model.fused_ops |
|---|---|---|
| of each of the two norms: input, normalised form, output | 2 x 3h | 2 x 2h: not the normalised form |
| q before its norm, normalised, turned by its position; attention's output | 4a | 3a |
| k the same three; v | 4k | 3k |
| gate, silu(gate), up, and their product | 4f | 4f |

Under autocast linear layers see a copy of their input in bfloat16 (q, k, v, gate and up one each) where norms, in
float32, have an output; everything between matmuls and attention is in bfloat16. In bfloat16 throughout, transformers'
norms make a float32 copy of their input. Compilation keeps what is cheapest to go on from. Selective checkpointing
keeps the input and the outputs of matmuls and attention, full the input alone. (Compare Korthikanti et al. 2022,
arXiv 2205.05198, equation 1.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from molgen_pretrain.model.flops import ModelSizes

Precision = Literal["float32", "autocast", "bfloat16"]
"""float32 throughout; float32 weights that autocast casts for each matmul; weights in bfloat16, as FSDP2 gathers
them on a GPU."""
Operators = Literal["eager", "fused", "compiled"]
Checkpointing = Literal["none", "selective", "full"]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Bytes per token and per unit of each width; per head and token besides, the float32 scalars of norms of q, k
    and of the attention's softmax, and those of the two norms."""

    hidden: int
    attention: int
    kv: int
    feed_forward: int
    per_head: int = 0
    per_kv_head: int = 0
    per_token: int = 0

    def bytes_per_token(self, sizes: ModelSizes, tensor: int) -> float:
        """Of one block on one of `tensor` tensor-parallel ranks, which all have whole hidden states."""
        heads, kv_heads = sizes.num_attention_heads, sizes.num_key_value_heads
        cut = (
            self.attention * heads * sizes.head_dim
            + self.kv * kv_heads * sizes.head_dim
            + self.feed_forward * sizes.intermediate_size
            + self.per_head * heads
            + self.per_kv_head * kv_heads
        )
        return self.hidden * sizes.hidden_size + self.per_token + cut / tensor


def _whole(hidden: int, attention: int, kv: int, feed_forward: int) -> Kept:
    return Kept(
        hidden=hidden, attention=attention, kv=kv, feed_forward=feed_forward, per_head=8, per_kv_head=4, per_token=8
    )


_KEPT: dict[tuple[Operators, Precision], Kept] = {
    ("eager", "float32"): _whole(24, 16, 16, 16),
    ("eager", "autocast"): _whole(26, 10, 10, 8),
    ("eager", "bfloat16"): _whole(16, 10, 10, 8),
    ("fused", "float32"): _whole(16, 12, 12, 16),
    ("fused", "autocast"): _whole(18, 6, 6, 8),
    ("fused", "bfloat16"): _whole(8, 6, 6, 8),
    ("compiled", "float32"): _whole(16, 12, 12, 12),
    ("compiled", "autocast"): _whole(10, 6, 6, 6),
    ("compiled", "bfloat16"): _whole(8, 6, 6, 6),
}

_KEPT_SELECTIVE: dict[Precision, Kept] = {
    "float32": Kept(hidden=12, attention=8, kv=8, feed_forward=8, per_head=4),
    "autocast": Kept(hidden=8, attention=4, kv=4, feed_forward=4, per_head=4),
    "bfloat16": Kept(hidden=6, attention=4, kv=4, feed_forward=4, per_head=4),
}


def kept(operators: Operators, precision: Precision, checkpointing: Checkpointing) -> Kept:
    """What one block keeps."""
    size = element_size(precision)
    if checkpointing == "none":
        return _KEPT[operators, precision]
    if checkpointing == "full":
        residual = 2 if precision == "bfloat16" else 4
        return Kept(hidden=residual, attention=0, kv=0, feed_forward=0)
    selective = _KEPT_SELECTIVE[precision]
    # The compiler adds up the down-projection's output again, which the operators one by one keep.
    return replace(selective, hidden=selective.hidden - size) if operators == "compiled" else selective


def element_size(precision: Precision) -> int:
    """Bytes of a number in matmuls."""
    return 4 if precision == "float32" else 2
