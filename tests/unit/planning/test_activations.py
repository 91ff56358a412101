"""The table of what a block keeps, against a real block."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from molgen_pretrain.model.qwen3 import Qwen3Arch, Qwen3ForPretraining, build_on_meta, materialize
from molgen_pretrain.parallel.activation_checkpointing import checkpoint_activations
from molgen_pretrain.planning.activations import kept

BATCH, SEQ = 2, 64


def arch(layers: int) -> Qwen3Arch:
    # No two widths are alike: 64, 96, 32, 176.
    return Qwen3Arch(
        vocab_size=32, hidden_size=64, num_hidden_layers=layers, num_attention_heads=6, num_key_value_heads=2,
        head_dim=16, intermediate_size=176,
    )  # fmt: skip


def build(layers: int, operators: str, precision: str, checkpointing: str) -> Qwen3ForPretraining:
    config = arch(layers).hf_config(eos_token_id=0, pad_token_id=0)
    model = build_on_meta(config, fused_ops=operators == "fused")
    materialize(model, device=torch.device("cpu"), seed=0)
    for block in model.model.layers:
        checkpoint_activations(block, checkpointing)
        if operators == "compiled":  # the compiler's choice of what to keep, without its kernels
            block.forward = torch.compile(block.forward, fullgraph=True, backend="aot_eager_decomp_partition")
    return model.to(torch.bfloat16) if precision == "bfloat16" else model


def autocast(precision: str):
    return torch.autocast("cpu", torch.bfloat16) if precision == "autocast" else nullcontext()


def cast_weights(precision: str) -> float:
    """Bytes per token of a block's weights that autocast holds to its end; planned beside the activations."""
    return 2 * 64 * (2 * 96 + 2 * 32 + 3 * 176) / (BATCH * SEQ) if precision == "autocast" else 0.0


@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16"])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("operators", ["eager", "fused"])
def test_bytes_that_a_block_keeps(live_memory, operators: str, precision: str, checkpointing: str) -> None:
    def after_forward(layers: int) -> int:
        model = build(layers, operators, precision, checkpointing)
        with live_memory(ignored=model.parameters()) as live, autocast(precision):
            hidden = model.model(input_ids=torch.zeros(BATCH, SEQ, dtype=torch.long), use_cache=False)
            assert hidden.last_hidden_state.requires_grad
            return live.now

    measured = (after_forward(3) - after_forward(2)) / (BATCH * SEQ) - cast_weights(precision)
    planned = kept(operators, precision, checkpointing).bytes_per_token(arch(1), tensor=1)
    # Some attention kernels keep a number per head, others none.
    assert planned == pytest.approx(measured, rel=0.02)


def test_bytes_that_a_compiled_block_keeps() -> None:
    torch._dynamo.reset()

    def saved(layers: int) -> int:
        model = build(layers, "compiled", "bfloat16", "none")
        sizes = {p.untyped_storage().data_ptr(): 0 for p in model.parameters()}
        tensors = []  # kept alive: an address is not used again

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            tensors.append(tensor)
            sizes.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.model(input_ids=torch.zeros(BATCH, SEQ, dtype=torch.long), use_cache=False)
        return sum(sizes.values())

    measured = (saved(3) - saved(2)) / (BATCH * SEQ)
    planned = kept("compiled", "bfloat16", "none").bytes_per_token(arch(1), tensor=1)
    assert planned == pytest.approx(measured, rel=0.02)


def test_a_tensor_parallel_rank_keeps_its_heads_and_whole_hidden_states() -> None:
    block = kept("fused", "bfloat16", "none")
    whole, half = (block.bytes_per_token(arch(1), tensor) for tensor in (1, 2))
    hidden = block.hidden * 64 + block.per_token
    assert half - hidden == pytest.approx((whole - hidden) / 2)
