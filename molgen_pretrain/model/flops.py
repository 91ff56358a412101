"""Arithmetic of a training step, for the model FLOPs utilisation (MFU). Loads no torch."""

from __future__ import annotations

from typing import Protocol


class ModelSizes(Protocol):
    """What decides the arithmetic of a Qwen3; the config and `Qwen3Arch` both are one."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def num_key_value_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def tie_word_embeddings(self) -> bool: ...


def block_matmul_weights(sizes: ModelSizes) -> int:
    """Weights of one block that a token is multiplied with: all but those of the norms."""
    attention_width = sizes.num_attention_heads * sizes.head_dim
    kv_width = sizes.num_key_value_heads * sizes.head_dim
    return (
        2 * sizes.hidden_size * attention_width  # q_proj and o_proj
        + 2 * sizes.hidden_size * kv_width  # k_proj and v_proj
        + 3 * sizes.hidden_size * sizes.intermediate_size  # gate, up, down
    )


def causal_pairs(length: int) -> float:
    """Pairs of positions (one attends to the other, or to itself) of a unit of `length`, or of a row without
    document mask."""
    return length * (length + 1) / 2


def step_flops(sizes: ModelSizes, *, tokens: float, attention_pairs: float, backward: bool = True) -> float:
    """FLOPs of `tokens` tokens with so many attention pairs, backward included unless told otherwise.

    Every weight of a matmul, the head included and the embedding look-up not, costs 2 FLOPs per token forward and
    4 backward. Scores and their sum over values cost 4 * heads * head_dim per layer and pair forward, twice that
    backward. Element-wise work is left out; recomputation (of checkpointed activations or logits, of the scores in
    a fused attention) is none of the model's and not counted (Chowdhery et al. 2022, arXiv 2204.02311, appendix B).
    """
    weights = sizes.num_hidden_layers * block_matmul_weights(sizes) + sizes.vocab_size * sizes.hidden_size
    attention = 4 * sizes.num_attention_heads * sizes.head_dim * sizes.num_hidden_layers
    forward = 2.0 * weights * tokens + attention * attention_pairs
    return 3 * forward if backward else forward


def flops_per_token(sizes: ModelSizes, seq_len: int) -> float:
    """Forward and backward FLOPs per token of full rows of `seq_len` without document mask."""
    return step_flops(sizes, tokens=1, attention_pairs=causal_pairs(seq_len) / seq_len)
