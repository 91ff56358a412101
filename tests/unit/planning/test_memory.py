"""The peak of a step on paper, against a real step's tensors."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from molgen_pretrain.model.loss import IGNORE_INDEX, token_loss_sum
from molgen_pretrain.model.qwen3 import Qwen3Arch, build_on_meta, materialize
from molgen_pretrain.optim.optimizer import build_optimizer
from molgen_pretrain.optim.param_groups import build_param_groups
from molgen_pretrain.parallel.activation_checkpointing import checkpoint_activations
from molgen_pretrain.parallel.degrees import Degrees
from molgen_pretrain.planning.memory import RankLoad, host_bytes, largest_local_batch, memory, peak

ARCH = Qwen3Arch(
    vocab_size=4096, hidden_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
    intermediate_size=384,
)  # fmt: skip
LOAD = RankLoad(
    sizes=ARCH,
    seq_len=256,
    local_batch_size=2,
    accumulation=1,
    degrees=Degrees(1, 1, 1, fsdp=False),
    precision="float32",
    operators="fused",
    checkpointing="none",
    optimizer="adamw",
    has_momentum=True,
    loss_kernel="fused",
    chunk_tokens=128,
)
SHARDED = replace(LOAD, degrees=Degrees(1, 8, 1, fsdp=True), precision="bfloat16")


def measured_peak(live_memory, load: RankLoad) -> int:
    """Of the second step: the first makes the optimizer's state."""
    arch = load.sizes
    model = build_on_meta(arch.hf_config(eos_token_id=0, pad_token_id=0), fused_ops=load.operators == "fused")
    materialize(model, device=torch.device("cpu"), seed=0)
    for block in model.model.layers:
        checkpoint_activations(block, load.checkpointing)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(arch.vocab_size, (load.local_batch_size, load.seq_len))
    labels = ids.clone()
    labels[:, -1] = IGNORE_INDEX
    with live_memory(model.parameters()) as live:
        for _ in range(2):
            live.peak = live.now
            for _ in range(load.accumulation):
                with torch.autocast("cpu", torch.bfloat16) if load.precision == "autocast" else nullcontext():
                    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
                    loss = token_loss_sum(
                        model.lm_head, hidden, labels, kernel=load.loss_kernel, chunk_tokens=load.chunk_tokens
                    ).total
                del hidden
                loss.backward()
                del loss
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return live.peak


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "autocast"},
        {"operators": "eager", "loss_kernel": "plain", "chunk_tokens": 0},
        {"loss_kernel": "checkpointed", "precision": "autocast"},
        {"checkpointing": "full"},
        {"checkpointing": "selective", "precision": "autocast"},
        {"accumulation": 2},
        {"sizes": replace(ARCH, tie_word_embeddings=False)},
    ],
    ids=lambda changes: " ".join(changes) or "as is",
)
def test_the_peak_of_a_step(live_memory, changes: dict) -> None:
    load = replace(LOAD, **changes)
    assert peak(load)[1].total == pytest.approx(measured_peak(live_memory, load), rel=0.1)


@pytest.mark.parametrize("kind", ["adamw", "sgd", "muon"])
def test_optimizer_state(kind: str) -> None:
    model = build_on_meta(ARCH.hf_config(eos_token_id=0, pad_token_id=0))
    materialize(model, device=torch.device("cpu"), seed=0)
    settings = {
        "adamw": {"betas": (0.9, 0.95), "eps": 1e-8},
        "sgd": {"momentum": 0.9, "nesterov": False},
        "muon": {"momentum": 0.95, "nesterov": True, "ns_steps": 1, "adjust_lr": "original", "adamw_lr_scale": 1.0,
                 "betas": (0.9, 0.95), "eps": 1e-8},
    }  # fmt: skip
    groups = build_param_groups(model.named_parameters())
    optimizer = build_optimizer(kind, groups, fused=None, **settings[kind])
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    measured = sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.ndim)  # but step counts
    assert memory(replace(LOAD, optimizer=kind))["update"].optimizer == measured


def test_shards_divide_what_lasts_and_nothing_else() -> None:
    one, eight = (memory(replace(SHARDED, degrees=Degrees(1, shard, 1, fsdp=True))) for shard in (1, 8))
    for kind in ("weights", "optimizer", "gradients"):
        assert vars(eight["update"])[kind] == vars(one["update"])[kind] / 8
    for kind in ("activations", "copies", "loss", "working"):
        assert vars(eight["backward"])[kind] == vars(one["backward"])[kind]


def test_accumulation_under_fsdp_holds_whole_gradients() -> None:
    """docs/parallelism.md: 4 bytes per parameter until the last micro-batch."""
    parameters = SHARDED.parameters.total
    assert memory(SHARDED)["loss"].gradients == 0
    assert memory(SHARDED.with_accumulation(2))["loss"].gradients == 4 * parameters


def test_weights_that_stay_gathered_and_blocks_ahead_take_memory() -> None:
    base, ahead, whole = (
        peak_copies(load) for load in (SHARDED, replace(SHARDED, prefetch=2), replace(SHARDED, keeps_gathered=True))
    )
    assert ahead - base == 2 * SHARDED.parameters.block
    assert whole - base == 2 * SHARDED.parameters.block  # all three blocks instead of two


def peak_copies(load: RankLoad) -> float:
    return memory(load)["backward"].copies


def test_offloading_moves_sixteen_bytes_per_parameter_to_the_host() -> None:
    offloaded = replace(SHARDED, cpu_offload=True)
    assert host_bytes(SHARDED) == 0
    assert host_bytes(offloaded) == 16 * SHARDED.parameters.total / 8
    assert memory(offloaded)["update"].weights == memory(offloaded)["update"].optimizer == 0


def test_the_largest_batch_fits_and_the_next_does_not() -> None:
    limit = peak(SHARDED.with_batch(37))[1].total
    assert largest_local_batch(SHARDED, limit) == 37
    assert largest_local_batch(SHARDED, limit - 1) == 36
    assert largest_local_batch(SHARDED, 1.0) == 0
