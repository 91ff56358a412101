"""Arithmetic of a training step, for the model FLOPs utilisation (MFU)."""

from __future__ import annotations

from molgen_pretrain.model.qwen3 import Qwen3Arch


def flops_per_token(arch: Qwen3Arch, seq_len: int) -> float:
    """Forward and backward FLOPs per token of a sequence of `seq_len`, attention counted causal.

    Every weight of a matmul, the head included and the embedding look-up not, costs 2 FLOPs forward and 4
    backward. Scores and their sum over values cost 4 * heads * head_dim per pair of positions forward, three
    times that with the backward, over (seq_len + 1) / 2 positions on average. Recomputation is not counted
    (Chowdhery et al. 2022, arXiv 2204.02311, appendix B).
    """
    attention_width = arch.num_attention_heads * arch.head_dim
    kv_width = arch.num_key_value_heads * arch.head_dim
    per_layer = (
        2 * arch.hidden_size * attention_width  # q_proj and o_proj
        + 2 * arch.hidden_size * kv_width  # k_proj and v_proj
        + 3 * arch.hidden_size * arch.intermediate_size  # gate, up, down
    )
    matmul_weights = arch.num_hidden_layers * per_layer + arch.vocab_size * arch.hidden_size
    attention = 12 * attention_width * (seq_len + 1) / 2 * arch.num_hidden_layers
    return 6.0 * matmul_weights + attention
