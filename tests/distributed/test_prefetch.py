"""FSDP2 asks for weights ahead, and asks no more often than it must."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from molgen_pretrain.model.qwen3 import Qwen3Arch, build_on_meta, materialize
from molgen_pretrain.parallel.degrees import resolve_degrees
from molgen_pretrain.parallel.layout import build_layout
from molgen_pretrain.parallel.parallelize import Wrapping, gradient_sync, parallelize

BLOCKS, ACCUMULATION = 3, 3
ARCH = Qwen3Arch(
    vocab_size=32, hidden_size=16, num_hidden_layers=BLOCKS, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
    intermediate_size=24,
)  # fmt: skip
CPU = torch.device("cpu")


def step(rank_layout: Any, wrapping: Wrapping) -> dict[str, Any]:
    """Gradients of accumulated micro-batches, and how often ranks gathered weights and scattered gradients."""
    model = build_on_meta(ARCH.hf_config(eos_token_id=0, pad_token_id=0))
    fill = partial(materialize, model, device=CPU, seed=0)
    called = parallelize(model, list(model.model.layers), rank_layout, wrapping, fill=fill)
    tokens = torch.arange(24).reshape(2, 12)
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        for number in range(ACCUMULATION):
            with gradient_sync(called, is_last=number == ACCUMULATION - 1):
                called(tokens.roll(number, 1), tokens).total.backward()
    events = [event.name for event in trace.events()]
    return {
        "gathers": events.count("c10d::_allgather_base_"),
        "scatters": events.count("c10d::_reduce_scatter_base_"),
        "gradients": [p.grad.full_tensor().flatten().tolist() for p in model.parameters()],
    }


def steps(wrappings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rank = torch.distributed.get_rank()
    degrees = resolve_degrees(replicate=1, shard=2, tensor=1, world_size=2)
    layout = build_layout(degrees, rank=rank, device=CPU)
    return [step(layout, Wrapping(**wrapping)) for wrapping in wrappings]


def test_prefetching_changes_nothing_and_accumulation_scatters_once(run_distributed: Callable[..., Any]) -> None:
    kinds = [{"prefetch": ahead, "reshard_after_forward": kind} for kind in ("default", "never") for ahead in (0, 2)]
    for found in run_distributed(steps, 2, kinds):
        for kind, result in zip(kinds, found, strict=True):
            assert result["gradients"] == found[0]["gradients"], kind
            assert result["scatters"] == BLOCKS + 1, kind
            # The root's weights once; a block's for each forward, and again for the backward if given back between.
            times = 2 if kind["reshard_after_forward"] == "default" else 1
            assert result["gathers"] == 1 + times * BLOCKS * ACCUMULATION, kind
