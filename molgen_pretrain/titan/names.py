"""Parameter names of TorchTitan's Qwen3 and of Hugging Face's; the weights are the same, rows in the same order."""

from __future__ import annotations

import re

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

# TorchTitan's name -> Hugging Face's.
_OUTSIDE_BLOCKS = {"tok_embeddings.weight": EMBEDDING, "norm.weight": "model.norm.weight", "lm_head.weight": HEAD}
_IN_BLOCK = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.qkv_linear.wq.weight": "self_attn.q_proj.weight",
    "attention.qkv_linear.wk.weight": "self_attn.k_proj.weight",
    "attention.qkv_linear.wv.weight": "self_attn.v_proj.weight",
    "attention.q_norm.weight": "self_attn.q_norm.weight",
    "attention.k_norm.weight": "self_attn.k_norm.weight",
    "attention.wo.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
}
# Before 0.3: another name for the same tensor.
_OLDER = {"output.weight": "lm_head.weight"} | {
    f"attention.{name}.weight": f"attention.qkv_linear.{name}.weight" for name in ("wq", "wk", "wv")
}
# q, k and v as one: the optimizer knows them so by default, the saved weights do not.
_FUSED = "attention.qkv_linear.wqkv.weight"
_QKV = tuple(f"self_attn.{letter}_proj.weight" for letter in "qkv")
_BLOCK = re.compile(r"layers\.(\d+)\.(.+)")


def hugging_face_names(name: str) -> tuple[str, ...]:
    """What a parameter of TorchTitan's is called by Hugging Face: q, k and v for the fused one; () if it is unknown."""
    block = _BLOCK.fullmatch(name)
    own = block.group(2) if block else name
    own = _OLDER.get(own, own)
    if block is None:
        return (_OUTSIDE_BLOCKS[own],) if own in _OUTSIDE_BLOCKS else ()
    inner = _QKV if own == _FUSED else tuple(theirs for ours, theirs in _IN_BLOCK.items() if ours == own)
    return tuple(f"model.layers.{block.group(1)}.{suffix}" for suffix in inner)


def titan_name(name: str) -> str:
    """What TorchTitan 0.3.0 saves a weight as, given its Hugging Face name."""
    block = re.fullmatch(r"model\.(layers\.\d+)\.(.+)", name)
    table = _IN_BLOCK if block else _OUTSIDE_BLOCKS
    own = block.group(2) if block else name
    theirs = next(ours for ours, hugging_face in table.items() if hugging_face == own)
    return f"{block.group(1)}.{theirs}" if block else theirs


def fused_members(layer: int) -> tuple[str, tuple[str, str, str]]:
    """TorchTitan's name of a block's fused projection, and Hugging Face's of q, k and v."""
    q, k, v = (f"model.layers.{layer}.{suffix}" for suffix in _QKV)
    return f"layers.{layer}.{_FUSED}", (q, k, v)
