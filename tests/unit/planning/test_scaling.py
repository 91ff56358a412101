"""Volumes by the papers' formulae, links by who has to leave the node, and which layout wins."""

from __future__ import annotations

from dataclasses import replace

import pytest

from molgen_pretrain.model.flops import step_flops
from molgen_pretrain.model.qwen3 import Qwen3Arch
from molgen_pretrain.parallel.degrees import Degrees
from molgen_pretrain.planning.gpus import GPUS
from molgen_pretrain.planning.links import Group, all_reduce, gather
from molgen_pretrain.planning.memory import RankLoad
from molgen_pretrain.planning.scaling import (
    Speed,
    at_fixed_global_batch,
    best_step,
    plan_step,
    usable_bytes,
)
from molgen_pretrain.planning.traffic import step_traffic

H100 = GPUS["h100"]
QWEN3_0_6B = Qwen3Arch(
    vocab_size=151936, hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
    head_dim=128, intermediate_size=3072,
)  # fmt: skip
SPEED = Speed(peak_flops=989e12, mfu=0.5, pairs_per_token=1024.5)


def load(replicate: int, shard: int, tensor: int = 1, *, fsdp: bool = True, **changes) -> RankLoad:
    values = {
        "sizes": QWEN3_0_6B, "seq_len": 2048, "local_batch_size": 8, "accumulation": 1, "precision": "bfloat16",
        "operators": "compiled", "checkpointing": "none", "optimizer": "adamw", "has_momentum": True,
        "loss_kernel": "fused", "chunk_tokens": 4096, "degrees": Degrees(replicate, shard, tensor, fsdp),
    }  # fmt: skip
    return RankLoad(**{**values, **changes})


def test_volumes_of_ddp_and_fsdp() -> None:
    """Psi parameters: DDP moves 2 Psi of float32; FSDP gathers Psi twice in bfloat16 (the root, which stays, once)
    and scatters Psi of float32 (Rajbhandari et al. 2020, section 7)."""
    ranks, parameters = 64, load(1, 1).parameters
    part = (ranks - 1) / ranks
    ddp = step_traffic(load(ranks, 1, fsdp=False, precision="autocast"), H100).total.bytes
    assert ddp == pytest.approx(2 * 4 * parameters.total * part)
    fsdp = step_traffic(load(1, ranks), H100).total.bytes
    gathered = 2 * (2 * parameters.total - parameters.root - parameters.block)
    assert fsdp == pytest.approx((gathered + 4 * parameters.total) * part)


def test_accumulation_gathers_again_and_reduces_once() -> None:
    one, three = (step_traffic(load(1, 8, accumulation=n), H100) for n in (1, 3))
    assert three.reduction == one.reduction
    per_micro_batch = one.forward.bytes + one.backward.bytes
    gathered_alone = 2 * (load(1, 8).parameters.root + load(1, 8).parameters.block) * 7 / 8
    assert three.total.bytes - one.total.bytes == pytest.approx(2 * (per_micro_batch + gathered_alone))


def test_weights_that_stay_gathered_are_not_gathered_again() -> None:
    assert step_traffic(load(1, 8, keeps_gathered=True), H100).backward.bytes == 0


def test_tensor_parallel_traffic() -> None:
    """Four sums of hidden states per block (Shoeybi et al. 2019), six where full checkpointing repeats the forward."""
    hidden = 2 * 8 * 2048 * 1024 * 2 * (1 / 2)  # bytes of bfloat16, twice, times (2 - 1) / 2
    plain, again = (step_traffic(load(1, 1, 2, checkpointing=kind), H100).tensor.bytes for kind in ("none", "full"))
    assert again - plain == pytest.approx(2 * 28 * hidden)


def test_a_group_of_one_says_nothing() -> None:
    assert step_traffic(load(1, 1), H100).total.bytes == 0
    assert all_reduce(1e9, Group(1, 1, H100)).seconds == 0


def test_a_group_leaves_the_node_through_the_ports_of_its_members() -> None:
    in_node, whole_nodes, one_per_node = Group(8, 1, H100), Group(64, 1, H100), Group(8, 8, H100)
    assert in_node.bytes_per_second == pytest.approx(0.8 * 450e9)
    assert whole_nodes.bytes_per_second == pytest.approx(0.8 * 8 * 50e9)
    assert one_per_node.bytes_per_second == pytest.approx(0.8 * 50e9)
    times = [gather(1e9, group).seconds for group in (in_node, whole_nodes, one_per_node)]
    assert times == sorted(times)


def test_communication_hides_behind_computation_until_there_is_too_little() -> None:
    traffic = step_traffic(load(1, 64), H100)
    assert traffic.waiting_seconds(1e3) == pytest.approx(traffic.exposed.seconds)
    assert traffic.waiting_seconds(0.0) == pytest.approx(traffic.total.seconds)


def test_a_step_takes_its_flops_over_the_peak_that_is_reached() -> None:
    step = plan_step(load(1, 1), H100, SPEED)
    flops = step_flops(QWEN3_0_6B, tokens=8 * 2048, attention_pairs=8 * 2048 * 1024.5)
    assert step.seconds == pytest.approx(flops / (0.5 * 989e12))
    assert step.hours(1e9) == pytest.approx(1e9 / (8 * 2048 / step.seconds) / 3600)


def test_the_best_layout_is_the_fastest_that_fits() -> None:
    assert best_step(load(1, -1), 8, H100, SPEED, half_dtype=True).layout == "fsdp 8"
    # A ring over a thousand ranks has a thousand hops.
    far = best_step(load(1, -1), 1024, H100, SPEED, half_dtype=True)
    assert far.layout == "hsdp 128 x 8"
    full = best_step(load(1, -1, local_batch_size=1000), 64, H100, SPEED, half_dtype=True)
    assert (full.layout, full.fits, full.reason) == ("fsdp 64", False, "none fits")
    room = (plan_step(load(1, 64), H100, SPEED).memory_bytes / 2**30 + 1.6) / 0.94
    small = replace(H100, memory_gib=room)
    only = best_step(load(1, -1), 64, small, SPEED, half_dtype=True)
    assert (only.layout, only.reason) == ("fsdp 64", "only this fits")
    assert only.memory_bytes <= usable_bytes(small) < plan_step(load(8, 8), small, SPEED).memory_bytes


def test_more_gpus_for_the_same_batch_end_where_communication_takes_over() -> None:
    steps = []
    for gpus in (1, 8, 64, 256, 1024, 2048):
        divided = at_fixed_global_batch(load(1, 1, accumulation=128), 1024, gpus)
        if divided is not None:
            steps.append(best_step(divided, gpus, H100, SPEED, half_dtype=True))
    assert [step.gpus for step in steps] == [1, 8, 64, 256, 1024]  # there are only 1,024 sequences
    assert {step.tokens for step in steps} == {1024 * 2048}
    efficiencies = [step.efficiency for step in steps]
    assert efficiencies == sorted(efficiencies, reverse=True)
    assert steps[0].efficiency == 1.0
    slow = replace(H100, network_gbs=2.0)
    crowded = at_fixed_global_batch(load(1, 1, accumulation=128), 1024, 1024)
    assert crowded is not None
    assert best_step(crowded, 1024, slow, SPEED, half_dtype=True).communication_dominates


def test_with_the_break_even_tokens_a_step_waits_as_long_as_it_computes() -> None:
    step = plan_step(load(1, 64), H100, SPEED)
    tokens = round(step.break_even_tokens)
    assert 0 < tokens < step.load.tokens
    at_it = plan_step(load(1, 64, local_batch_size=1, seq_len=tokens), H100, SPEED)
    assert at_it.waiting_seconds == pytest.approx(at_it.compute_seconds, rel=0.01)
    assert plan_step(load(1, 1), H100, SPEED).break_even_tokens == pytest.approx(0, abs=1e-3)
