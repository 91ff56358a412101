"""Optimizers on FSDP2 shards: the same weights as on one device, through checkpoints and other numbers of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from transformers import Qwen3Config, Qwen3ForCausalLM

from molgen_pretrain.checkpoint.checkpointer import Checkpointer
from molgen_pretrain.optim.optimizer import build_optimizer
from molgen_pretrain.optim.param_groups import GroupRule, build_param_groups
from molgen_pretrain.optim.scheduler import ScheduleApplier
from molgen_pretrain.parallel.tensor_parallel import apply_tensor_parallel
from molgen_pretrain.schedules import WSDS

# 50 and 37 rows: no number of ranks divides all matrices evenly.
CONFIG = Qwen3Config(
    vocab_size=37, hidden_size=32, intermediate_size=50, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=16, tie_word_embeddings=True,
)  # fmt: skip
SCHEDULE = WSDS(lr_max=1e-2, lr_min=1e-3, warmup_steps=2, checkpoints=(8,), start_weight_decay=0.1)
ADAM = {"betas": (0.9, 0.95), "eps": 1e-8}
MUON = {
    "momentum": 0.95,
    "nesterov": True,
    "ns_steps": 5,
    "adjust_lr": "match_rms_adamw",
    "adamw_lr_scale": 1.0,
    **ADAM,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "adamw": ADAM,
    "adam": ADAM,
    "sgd": {"momentum": 0.9, "nesterov": True},
    "muon": MUON,
}


def build(kind: str, mesh: DeviceMesh | None = None) -> tuple[nn.Module, ScheduleApplier]:
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(CONFIG)
    if mesh is not None:
        shard_axes = tuple(name for name in mesh.mesh_dim_names if name != "tensor")
        if "tensor" in mesh.mesh_dim_names:
            apply_tensor_parallel(model, model.model.layers, mesh["tensor"])
        for module in (*model.model.layers, model):
            fully_shard(module, mesh=mesh[shard_axes])
    groups = build_param_groups(
        model.named_parameters(), preset="layerwise", layer_decay_rate=0.8, rules=[GroupRule("*norm*", wd_scale=0.0)]
    )
    return model, ScheduleApplier(build_optimizer(kind, groups, fused=None, **SETTINGS[kind]), SCHEDULE)


def update(model: nn.Module, applier: ScheduleApplier, steps: range) -> None:
    """Updates with gradients that depend on step and position alone, sharded as the parameters are."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for p in model.parameters():
            gradient = torch.randn(p.shape, generator=generator)
            if isinstance(p, DTensor):
                gradient = distribute_tensor(gradient, p.device_mesh, p.placements, src_data_rank=None)
            p.grad = gradient
        applier.prepare(step)
        applier.optimizer.step()


def whole(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.full_tensor() if isinstance(p, DTensor) else p.detach() for n, p in model.named_parameters()}


def sharded(kind: str, axes: dict[str, int], root: str) -> dict[str, list[str]]:
    """Parameters that differ from the single process's after 8 steps, and after a resume at step 5."""
    expected = torch.load(Path(root) / "reference.pt")
    mesh = init_device_mesh("cpu", tuple(axes.values()), mesh_dim_names=tuple(axes))
    model, applier = build(kind, mesh)
    update(model, applier, range(1, 6))
    checkpoints = Checkpointer(Path(root) / "checkpoint", keep_latest_k=0)
    checkpoints.save(5, model=model, optimizer=applier.optimizer, state={})
    update(model, applier, range(6, 9))
    resumed, again = build(kind, mesh)
    checkpoints.load_newest(model=resumed, optimizer=again.optimizer)
    update(resumed, again, range(6, 9))
    return {what: differing(whole(m), expected) for what, m in (("trained", model), ("resumed", resumed))}


def differing(found: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    return sorted(name for name in expected if not torch.equal(found[name], expected[name]))


@pytest.mark.parametrize(
    ("kind", "axes"),
    [
        ("adamw", {"shard": 2}),
        ("adam", {"shard": 2}),
        ("sgd", {"shard": 2}),
        ("muon", {"shard": 2}),
        ("muon", {"shard": 3}),
        ("muon", {"replicate": 2, "shard": 2}),
        ("muon", {"shard": 1, "tensor": 2}),
        ("muon", {"shard": 2, "tensor": 2}),
    ],
)
def test_shards_get_the_update_of_the_whole_matrix(
    run_distributed: Callable[..., Any], tmp_path: Path, kind: str, axes: dict[str, int]
) -> None:
    model, applier = build(kind)
    update(model, applier, range(1, 9))
    torch.save(whole(model), tmp_path / "reference.pt")
    for result in run_distributed(sharded, math.prod(axes.values()), kind, axes, str(tmp_path)):
        assert result == {"trained": [], "resumed": []}

    # The sharded checkpoint goes on in one process.
    resumed, again = build(kind)
    Checkpointer(tmp_path / "checkpoint", keep_latest_k=0).load_newest(model=resumed, optimizer=again.optimizer)
    update(resumed, again, range(6, 9))
    assert differing(whole(resumed), whole(model)) == []


def collectives() -> list[int]:
    """Number of collectives in one Muon step, and of rounds: pairs of matrices in each group."""
    model, applier = build("muon", init_device_mesh("cpu", (2,), mesh_dim_names=("shard",)))
    update(model, applier, range(1, 2))
    applier.prepare(2)
    with CommDebugMode() as communication:
        applier.optimizer.step()
    matrices = [len(group["params"]) for group in applier.optimizer.param_groups if "ns_steps" in group]
    return [communication.get_total_counts(), sum(-(-count // 2) for count in matrices)]


def test_muon_speaks_twice_for_as_many_matrices_as_ranks(run_distributed: Callable[..., Any]) -> None:
    assert run_distributed(collectives, 2) == [[2 * 8, 8], [2 * 8, 8]]
