"""A snapshot in every layout: transformers' logits, one process's new rows, shards out again, memory of a shard."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from molgen_pretrain.checkpoint.checkpointer import Checkpointer
from molgen_pretrain.model.hf_io import export_hf
from molgen_pretrain.model.hf_load import RowPlan, load_snapshot
from molgen_pretrain.model.hf_snapshot import Snapshot
from molgen_pretrain.model.hf_weights import plan_files, write_weights
from molgen_pretrain.model.qwen3 import Qwen3Arch, Qwen3ForPretraining, build_on_meta, materialize
from molgen_pretrain.parallel.degrees import resolve_degrees
from molgen_pretrain.parallel.layout import build_layout
from molgen_pretrain.parallel.parallelize import Wrapping, parallelize

CPU = torch.device("cpu")
ROWS, BASE_TOKENS, TOKENS = 62, 50, 54


def make_snapshot(folder: Path, *, tied: bool, max_shard_size: str) -> None:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=ROWS,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=50,
        initializer_range=0.3,
        tie_word_embeddings=tied,
    )
    Qwen3ForCausalLM(config).bfloat16().save_pretrained(folder, max_shard_size=max_shard_size)


def load(
    folder: Path,
    *,
    base_tokens: int = TOKENS,
    read: Callable[..., None] = load_snapshot,
    replicate: int = 1,
    shard: int = 1,
    tensor: int = 1,
) -> tuple[Qwen3ForPretraining, nn.Module]:
    """The model and what is called; the rows from `base_tokens` to TOKENS are new."""
    size, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    degrees = resolve_degrees(replicate=replicate, shard=shard, tensor=tensor, world_size=size)
    snapshot = Snapshot.open(folder)
    model = build_on_meta(Qwen3Arch(**snapshot.sizes).hf_config(eos_token_id=0, pad_token_id=0))
    plan = RowPlan.extended(snapshot, base_tokens=base_tokens, tokens=TOKENS, rows=snapshot.rows)
    fill = partial(materialize, model, device=CPU, seed=7, load=partial(read, snapshot=snapshot, plan=plan, seed=7))
    layout = build_layout(degrees, rank=rank, device=CPU)
    return model, parallelize(model, list(model.model.layers), layout, Wrapping(), fill=fill)


def difference(folder: Path, model: Qwen3ForPretraining, called: nn.Module) -> float:
    """Largest difference of logits from transformers' own model."""
    theirs = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.forward = partial(Qwen3ForCausalLM.forward, model)
    input_ids = torch.randint(ROWS, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return (called(input_ids=input_ids).logits - theirs(input_ids=input_ids).logits).abs().max().item()


def digest(model: nn.Module) -> str:
    found = hashlib.sha256()
    for _, parameter in model.named_parameters():
        value = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        found.update(value.detach().numpy().tobytes())
    return found.hexdigest()


def in_layouts(folders: list[str], layouts: dict[str, dict[str, int]]) -> dict[str, Any]:
    """Of every folder and layout: (difference from transformers, digest with new rows)."""
    results = {}
    for folder in map(Path, folders):
        for layout, degrees in layouts.items():
            with_new_rows, _ = load(folder, base_tokens=BASE_TOKENS, **degrees)
            results[f"{folder.name} {layout}"] = (
                difference(folder, *load(folder, **degrees)),
                digest(with_new_rows),
            )
    return results


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    make_snapshot(tmp_path / "tied", tied=True, max_shard_size="4GB")
    make_snapshot(tmp_path / "untied", tied=False, max_shard_size="5KB")
    return [tmp_path / "tied", tmp_path / "untied"]


def check(run_distributed: Callable[..., Any], folders: list[Path], layouts: dict[str, dict[str, int]]) -> None:
    alone = {folder.name: digest(load(folder, base_tokens=BASE_TOKENS)[0]) for folder in folders}
    for results in run_distributed(in_layouts, prod(next(iter(layouts.values())).values()), folders, layouts):
        assert len(results) == len(folders) * len(layouts)
        for case, (worst, weights) in results.items():
            assert worst < 1e-5, case
            assert weights == alone[case.split()[0]], case


def test_layouts_compute_as_transformers_and_have_the_rows_of_one_process(
    run_distributed: Callable[..., Any], folders: list[Path]
) -> None:
    check(run_distributed, folders, {"fsdp": {"shard": 2}, "tensor": {"tensor": 2}, "ddp": {"replicate": 2}})


def test_fsdp_over_tensor_parallelism_too(run_distributed: Callable[..., Any], folders: list[Path]) -> None:
    check(run_distributed, folders[1:], {"both": {"shard": 2, "tensor": 2}})


def out_again(folder: str, target: str) -> str:
    """Save a checkpoint and two exports; the second cannot be written: returns the error."""
    model, _ = load(Path(folder), shard=2)
    state = {"progress": {"step": 3, "tokens": 0}, "schedule": {"schedule": "none"}}
    Checkpointer(Path(target) / "checkpoint", keep_latest_k=0).save(3, model=model, optimizer=None, state=state)
    write = partial(export_hf, model, folder, is_writer=dist.get_rank() == 0, max_shard_size="20KB")
    write(target=Path(target) / "hf", dtype=torch.bfloat16)
    try:
        write(target=Path(target) / "hf" / "config.json" / "below")
    except OSError as error:
        return str(error)
    return ""


def test_shards_are_exported_bit_for_bit_and_a_failure_leaves_no_rank_waiting(
    run_distributed: Callable[..., Any], folders: list[Path], tmp_path: Path
) -> None:
    errors = run_distributed(out_again, 2, folders[1], tmp_path, timeout_seconds=60)
    assert "config.json" in errors[0]
    assert errors[1] == ""
    source = Qwen3ForCausalLM.from_pretrained(folders[1])
    exported = Qwen3ForCausalLM.from_pretrained(tmp_path / "hf")
    assert exported.dtype is torch.bfloat16
    for (name, value), expected in zip(exported.named_parameters(), source.parameters(), strict=True):
        assert torch.equal(value, expected), name
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    files = [load_file(tmp_path / "checkpoint" / "step-00000003" / f"rank-0000{rank}.safetensors") for rank in (0, 1)]
    assert all("model.lm_head.weight" in tensors for tensors in files)


ARCH = Qwen3Arch(
    vocab_size=8192, hidden_size=512, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4, head_dim=64,
    intermediate_size=2048,
)  # fmt: skip


def peak_of_loading(folder: str) -> dict[str, float]:
    """MiB of this rank's shards, of the whole model, and how far resident memory rose while they were filled."""
    before = 0

    def read(*arguments: Any, **options: Any) -> None:
        nonlocal before
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
        before = _resident("VmRSS")
        load_snapshot(*arguments, **options)

    model, _ = load(Path(folder), base_tokens=BASE_TOKENS, read=read, shard=-1)
    rise = _resident("VmHWM") - before
    own = sum(p.to_local().numel() for p in model.parameters() if isinstance(p, DTensor)) * 4
    whole = sum(p.numel() for p in model.parameters()) * 4
    return {"own": own / 2**20, "whole": whole / 2**20, "rise": rise / 2**20}


def _resident(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux' account of memory")
def test_loading_takes_the_shards_of_a_rank(run_distributed: Callable[..., Any], tmp_path: Path) -> None:
    with torch.device("meta"):
        model = Qwen3ForCausalLM(ARCH.hf_config(eos_token_id=0, pad_token_id=0))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    plan = plan_files(shapes, torch.bfloat16, "4GB")
    write_weights(tmp_path, plan, ([torch.ones(shapes[name])] for name in plan.order))
    model.config.save_pretrained(tmp_path)
    for mib in run_distributed(peak_of_loading, 2, tmp_path):
        assert mib["own"] == pytest.approx(mib["whole"] / 2, rel=0.02)
        # The largest slice of the file is 4 MiB, the rest is for libraries.
        assert mib["rise"] < mib["own"] + 20 < 0.7 * mib["whole"], mib
