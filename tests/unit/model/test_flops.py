"""FLOPs against torch's own counter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from molgen_pretrain.model.flops import causal_pairs, flops_per_token, step_flops
from molgen_pretrain.model.loss import token_loss_sum
from molgen_pretrain.model.qwen3 import Qwen3Arch, build_on_meta, materialize

NARROW = Qwen3Arch(
    vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    intermediate_size=48,
)  # fmt: skip
# Attention wider than the hidden state, as in Qwen3-0.6B, one key-value head, an untied head.
WIDE = Qwen3Arch(
    vocab_size=301, hidden_size=24, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=1, head_dim=8,
    intermediate_size=80, tie_word_embeddings=False,
)  # fmt: skip


@pytest.mark.parametrize("kernel", ["plain", "fused"])
@pytest.mark.parametrize(("arch", "seq_len"), [(NARROW, 8), (NARROW, 96), (WIDE, 33)])
def test_forward_and_backward_equal_the_counter_of_torch(arch: Qwen3Arch, seq_len: int, kernel: str) -> None:
    model = build_on_meta(arch.hf_config(eos_token_id=0, pad_token_id=0), fused_ops=False)
    # Spelled out, so that the counter sees every product once; it counts all pairs of positions.
    model.set_attn_implementation("eager")
    materialize(model, device=torch.device("cpu"), seed=0)
    ids = torch.randint(arch.vocab_size, (3, seq_len))

    def forward() -> torch.Tensor:
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        return token_loss_sum(model.lm_head, hidden, ids, kernel=kernel).total

    work = {"tokens": ids.numel(), "attention_pairs": len(ids) * seq_len**2}
    with FlopCounterMode(display=False) as both:
        forward().backward()
    assert step_flops(arch, **work) == both.get_total_flops()
    with FlopCounterMode(display=False) as alone, torch.no_grad():
        forward()
    assert step_flops(arch, **work, backward=False) == alone.get_total_flops()


def test_pairs_are_those_of_a_triangle_and_per_token_figures_follow() -> None:
    assert causal_pairs(5) == 1 + 2 + 3 + 4 + 5
    rows = step_flops(WIDE, tokens=4 * 33, attention_pairs=4 * causal_pairs(33))
    assert flops_per_token(WIDE, 33) * 4 * 33 == pytest.approx(rows)
    # Two units in a row attend to less than the whole row does.
    assert step_flops(WIDE, tokens=32, attention_pairs=2 * causal_pairs(16)) < 32 * flops_per_token(WIDE, 32)


def test_a_tie_changes_no_work() -> None:
    tied = replace(WIDE, tie_word_embeddings=True)
    assert flops_per_token(tied, 64) == flops_per_token(WIDE, 64)
