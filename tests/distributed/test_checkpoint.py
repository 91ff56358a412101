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
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
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
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=16,
    tie_word_embeddings=True,
    use_cache=False,
)
BLOCK_PLAN: dict[str, Any] = {
    **dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ColwiseParallel()),
    **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), ColwiseParallel()),
    **dict.fromkeys(("self_attn.o_proj", "mlp.down_proj"), RowwiseParallel()),
    **dict.fromkeys(("input_layernorm", "post_attention_layernorm"), SequenceParallel()),
}
ROOT_PLAN: dict[str, Any] = {
    "model.embed_tokens": RowwiseParallel(input_layouts=Replicate()),
    "model.norm": SequenceParallel(),
    "lm_head": ColwiseParallel(),
}


def build(seed: int, mesh: DeviceMesh | None = None, tensor_axis: DeviceMesh | None = None) -> Any:
    """A tied Qwen3 and its AdamW; sharded over `mesh`, after tensor parallelism over `tensor_axis`.

    Tensor parallelism leaves replicated DTensors (norms) and plain tensors (q_norm, k_norm) beside its shards.
    """
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(CONFIG)
    if tensor_axis is not None:
        parallelize_module(model, tensor_axis, ROOT_PLAN)
        model.lm_head.weight = model.model.embed_tokens.weight
    for layer in model.model.layers:
        if tensor_axis is not None:
            parallelize_module(layer, tensor_axis, BLOCK_PLAN)
        if mesh is not None:
            fully_shard(layer, mesh=mesh)
    if mesh is not None:
        fully_shard(model, mesh=mesh)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def build_layout(name: str) -> Any:
    """One of LAYOUTS, on as many ranks as it needs."""
    if name in ("plain", "copies 4"):
        return build(seed=3)
    if name == "tp 2":
        return build(seed=3, tensor_axis=init_device_mesh("cpu", (2,)))
    if name == "hsdp 2x2":
        return build(seed=3, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))
    if name == "fsdp 2 x tp 2":
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
        return build(seed=3, mesh=mesh["data"], tensor_axis=mesh["tensor"])
    return build(seed=3, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))


LAYOUTS = {"plain": 1, "fsdp 2": 2, "tp 2": 2, "fsdp 4": 4, "hsdp 2x2": 4, "fsdp 2 x tp 2": 4, "copies 4": 4}


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


def local(model: Any, optimizer: Any) -> dict[str, Tensor]:
    """This rank's own data, live."""
    tensors = named_tensors(model, optimizer)
    return {
        name: (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()
        for name, tensor in tensors.items()
    }


def wrongly_loaded(root: Path, model: Any, optimizer: Any) -> dict[str, list[str]]:
    """By layout that saved: names of tensors that are not the reference's after loading it into these."""

    def load(source: str) -> None:
        for data in local(model, optimizer).values():
            data.fill_(7)
        assert Checkpointer(root / source, keep_latest_k=0).load(3, model=model, optimizer=optimizer) == {"step": 3}

    load("plain")
    wrong = {"plain": differing(full(model, optimizer), torch.load(root / "reference.pt"))}
    expected = {name: data.clone() for name, data in local(model, optimizer).items()}
    for source in LAYOUTS:
        load(source)
        wrong[source] = wrong.get(source, []) + differing(local(model, optimizer), expected)
    return wrong


def save_layouts(root: str) -> None:
    """Load the plain checkpoint into each layout of this many ranks, and save it from there."""
    for name in (name for name, ranks in LAYOUTS.items() if ranks == dist.get_world_size()):
        model, optimizer = build_layout(name)
        Checkpointer(Path(root) / "plain", keep_latest_k=0).load(3, model=model, optimizer=optimizer)
        Checkpointer(Path(root) / name, keep_latest_k=0).save(3, model=model, optimizer=optimizer, state={"step": 3})


def load_layouts(root: str) -> dict[str, list[str]]:
    """Load what every layout saved into each layout of this many ranks."""
    wrong = {}
    for name in (name for name, ranks in LAYOUTS.items() if ranks == dist.get_world_size()):
        for source, names in wrongly_loaded(Path(root), *build_layout(name)).items():
            wrong[f"{source} -> {name}"] = names
    return wrong


def save_and_load_layouts(root: str) -> dict[str, list[str]]:
    save_layouts(root)
    return load_layouts(root)


def test_state_is_bit_identical_from_every_layout_to_every_other(run_distributed: Any, tmp_path: Path) -> None:
    model, optimizer = build(seed=0)
    train(model, optimizer, range(1, 4))
    torch.save(full(model, optimizer), tmp_path / "reference.pt")
    Checkpointer(tmp_path / "plain", keep_latest_k=0).save(3, model=model, optimizer=optimizer, state={"step": 3})

    run_distributed(save_layouts, 2, tmp_path)
    results = run_distributed(save_and_load_layouts, 4, tmp_path)
    results += run_distributed(load_layouts, 2, tmp_path)
    results.append({f"{name} -> plain": wrong for name, wrong in wrongly_loaded(tmp_path, *build(seed=4)).items()})
    assert {pair for result in results for pair in result} >= {f"{a} -> {b}" for a in LAYOUTS for b in LAYOUTS}
    assert {pair: wrong for result in results for pair, wrong in result.items() if wrong} == {}

    for name in ("hsdp 2x2", "copies 4"):
        sizes = [(tmp_path / name / "step-00000003" / shard_file(rank)).stat().st_size for rank in range(4)]
        assert max(sizes) < 1.5 * min(sizes), "identical copies share the writing"


def resume(root: str) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (2,))
    model, optimizer = build(seed=1, mesh=mesh)
    train(model, optimizer, range(1, 4))
    Checkpointer(Path(root), keep_latest_k=0).save(3, model=model, optimizer=optimizer, state={})
    losses = train(model, optimizer, range(4, 7))
    again, its_optimizer = build(seed=2, mesh=mesh)
    Checkpointer(Path(root), keep_latest_k=0).load_newest(model=again, optimizer=its_optimizer)
    return {"losses": losses, "resumed": train(again, its_optimizer, range(4, 7))}


def test_sharded_training_resumes_bit_identically(run_distributed: Any, tmp_path: Path) -> None:
    for result in run_distributed(resume, 2, tmp_path):
        assert result["resumed"] == result["losses"]


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
