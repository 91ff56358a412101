"""Checkpoints across real ranks: resharding, agreement on failure, agreement on which one to load."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import Qwen3Config, Qwen3ForCausalLM

from molgen_pretrain.checkpoint.checkpointer import Checkpointer
from molgen_pretrain.checkpoint.errors import CheckpointMismatch, CheckpointSaveError
from molgen_pretrain.checkpoint.layout import shard_file
from molgen_pretrain.checkpoint.state import named_tensors

# Sizes that neither 2 nor 4 ranks divide evenly, and norms of 16 elements.
CONFIG = Qwen3Config(
    vocab_size=37,
    hidden_size=32,
    intermediate_size=50,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=16,
    tie_word_embeddings=True,
    use_cache=False,
)
COLUMN_WISE = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
ROW_WISE = ("self_attn.o_proj", "mlp.down_proj")


def build(seed: int, mesh: DeviceMesh | None = None, tensor_axis: DeviceMesh | None = None) -> Any:
    """A tied Qwen3 and its AdamW; sharded over `mesh`, after tensor parallelism over `tensor_axis`."""
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(CONFIG)
    for layer in model.model.layers:
        if tensor_axis is not None:
            plan = {name: ColwiseParallel() for name in COLUMN_WISE}
            parallelize_module(layer, tensor_axis, {**plan, **{name: RowwiseParallel() for name in ROW_WISE}})
        if mesh is not None:
            fully_shard(layer, mesh=mesh)
    if mesh is not None:
        fully_shard(model, mesh=mesh)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def train(model: Any, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        tokens = torch.randint(0, 37, (2, 12), generator=torch.Generator().manual_seed(step))
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def full(model: Any, optimizer: Any) -> dict[str, Tensor]:
    """The whole tensors by name. Collective where they are sharded."""
    tensors = named_tensors(model, optimizer)
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()
        for name, tensor in tensors.items()
    }


def differing(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[str]:
    odd = sorted(ours.keys() ^ theirs.keys())
    return odd + [name for name in ours.keys() & theirs.keys() if not torch.equal(ours[name], theirs[name])]


def reload(source: Path, target: Path, model: Any, optimizer: Any) -> list[str]:
    """Load a checkpoint, compare with the reference file beside it, save it under another name."""
    state = Checkpointer(target, keep_latest_k=0).load(source, model=model, optimizer=optimizer)
    assert state == {"step": 3}
    wrong = differing(full(model, optimizer), torch.load(source.parents[1] / "reference.pt"))
    Checkpointer(target, keep_latest_k=0).save(3, model=model, optimizer=optimizer, state=state)
    return wrong


def fsdp_two(root: str) -> dict[str, Any]:
    folder = Path(root)
    model, optimizer = build(seed=1, mesh=init_device_mesh("cpu", (2,)))
    wrong = reload(folder / "plain/step-00000003", folder / "fsdp2", model, optimizer)

    losses = train(model, optimizer, range(4, 7))
    again, its_optimizer = build(seed=2, mesh=init_device_mesh("cpu", (2,)))
    Checkpointer(folder / "fsdp2", keep_latest_k=0).load_newest(model=again, optimizer=its_optimizer)
    return {"wrong": wrong, "losses": losses, "resumed": train(again, its_optimizer, range(4, 7))}


def four_ranks(root: str) -> dict[str, list[str]]:
    folder = Path(root)
    replicated = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    tensor = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    layouts = {
        "fsdp4": {"mesh": init_device_mesh("cpu", (4,))},
        "hsdp": {"mesh": replicated},
        "tp": {"mesh": tensor["data"], "tensor_axis": tensor["tensor"]},
        "copies": {},
    }
    wrong = {}
    source = "fsdp2"
    for name, arguments in layouts.items():
        model, optimizer = build(seed=3, **arguments)
        wrong[name] = reload(folder / source / "step-00000003", folder / name, model, optimizer)
        source = name
    return wrong


def test_state_is_bit_identical_through_every_layout(run_distributed: Any, tmp_path: Path) -> None:
    model, optimizer = build(seed=0)
    train(model, optimizer, range(1, 4))
    original = full(model, optimizer)
    torch.save(original, tmp_path / "reference.pt")
    Checkpointer(tmp_path / "plain", keep_latest_k=0).save(3, model=model, optimizer=optimizer, state={"step": 3})

    for result in run_distributed(fsdp_two, 2, tmp_path):
        assert result["wrong"] == []
        assert result["resumed"] == result["losses"]
    for result in run_distributed(four_ranks, 4, tmp_path):
        assert result == {"fsdp4": [], "hsdp": [], "tp": [], "copies": []}

    fresh, its_optimizer = build(seed=4)
    for name in ("fsdp2", "fsdp4", "hsdp", "tp", "copies"):
        Checkpointer(tmp_path / name, keep_latest_k=0).load(3, model=fresh, optimizer=its_optimizer)
        assert differing(full(fresh, its_optimizer), original) == []
        assert train(fresh, its_optimizer, range(9, 10))  # so that the next load has something to undo

    sizes = [(tmp_path / "copies/step-00000003" / shard_file(rank)).stat().st_size for rank in range(4)]
    assert max(sizes) < 1.5 * min(sizes), "identical copies share the writing"


def failing_save(root: str) -> dict[str, Any]:
    from molgen_pretrain.checkpoint import saving

    folder = Path(root)
    model, optimizer = build(seed=0, mesh=init_device_mesh("cpu", (2,)))
    checkpointer = Checkpointer(folder, keep_latest_k=1)
    outcome: dict[str, Any] = {}
    written = saving.write_tensors
    for name, error in {"disk": OSError(errno.ENOSPC, "No space left on device"), "bug": KeyError("x")}.items():

        def fail(*_: Any, error: Exception = error) -> Any:
            raise error

        saving.write_tensors = fail if dist.get_rank() == 1 else written
        with pytest.raises(RuntimeError) as caught:
            checkpointer.save(1, model=model, optimizer=optimizer, state={})
        outcome[name] = [type(caught.value).__name__, str(caught.value)]
        dist.barrier()
        outcome[f"{name} leaves"] = [entry.name for entry in folder.iterdir()]
        dist.barrier()
    saving.write_tensors = written
    checkpointer.save(1, model=model, optimizer=optimizer, state={})
    outcome["steps"] = checkpointer.steps()
    return outcome


def test_failure_of_one_rank_fails_all_and_leaves_nothing(run_distributed: Any, tmp_path: Path) -> None:
    results = run_distributed(failing_save, 2, tmp_path)
    assert results[0] == results[1]
    kind, message = results[0]["disk"]
    assert kind == CheckpointSaveError.__name__
    assert "rank 1" in message
    assert "No space left" in message
    assert results[0]["bug"][0] != CheckpointSaveError.__name__
    assert results[0]["disk leaves"] == results[0]["bug leaves"] == []
    assert results[0]["steps"] == [1]


def damaged_newest(root: str) -> dict[str, Any]:
    folder = Path(root)
    mesh = init_device_mesh("cpu", (2,))
    model, optimizer = build(seed=0, mesh=mesh)
    checkpointer = Checkpointer(folder, keep_latest_k=0)
    for step in (1, 2):
        train(model, optimizer, range(step, step + 1))
        checkpointer.save(step, model=model, optimizer=optimizer, state={"step": step})
    dist.barrier()
    if dist.get_rank() == 0:
        path = folder / "step-00000002" / shard_file(1)
        content = bytearray(path.read_bytes())
        content[-5] ^= 4
        path.write_bytes(content)
    dist.barrier()

    model, optimizer = build(seed=1, mesh=mesh)
    restored = Checkpointer(folder, keep_latest_k=0).load_newest(model=model, optimizer=optimizer)
    assert restored is not None
    with pytest.raises(CheckpointMismatch):
        checkpointer.load(1, model=torch.nn.Linear(2, 2), optimizer=None)
    return {"from": restored[0].name, "state": restored[1]}


def test_all_ranks_fall_back_to_the_same_checkpoint(run_distributed: Any, tmp_path: Path) -> None:
    results = run_distributed(damaged_newest, 2, tmp_path)
    assert results == [{"from": "step-00000001", "state": {"step": 1}}] * 2
    manifest = json.loads((tmp_path / "step-00000001/manifest.json").read_text())
    assert manifest["world_size"] == 2
