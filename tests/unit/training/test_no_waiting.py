"""Between log steps the host never waits for the device: a step is launched on tensors that have no values to read."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from molgen_pretrain.config.schema import SAMPLE_DIR
from molgen_pretrain.data.dataset import JsonlTaggedPackedDataset
from molgen_pretrain.data.prefetch import DevicePrefetcher
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.model.qwen3 import Qwen3Arch, build_on_meta
from molgen_pretrain.optim.guard import UpdateGuard
from molgen_pretrain.optim.optimizer import build_optimizer
from molgen_pretrain.optim.param_groups import ParamGroup
from molgen_pretrain.parallel.activity import Activity
from molgen_pretrain.parallel.degrees import Degrees
from molgen_pretrain.parallel.layout import Layout
from molgen_pretrain.signals import StopRequest
from molgen_pretrain.training.update import GradientComputer

META = torch.device("meta")


class Copies(TorchDispatchMode):
    """Whether each copy from the host to the device lets the host go on."""

    def __init__(self) -> None:
        super().__init__()
        self.blocking: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        if isinstance(result, torch.Tensor) and result.device == META and any(t.device != META for t in tensors):
            self.blocking.append(not kwargs.get("non_blocking", False))
        return result


@pytest.fixture
def two_ranks() -> Iterator[None]:
    from torch.testing._internal.distributed.fake_pg import FakeStore  # also registers the backend

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


@pytest.fixture
def data(tmp_path_factory: pytest.TempPathFactory) -> JsonlTaggedPackedDataset:
    return JsonlTaggedPackedDataset(
        paths=SAMPLE_DIR / "valid",
        tokenizer=UnitTokenizer.load(SAMPLE_DIR / "tokenizer"),
        seq_len=128,
        local_batch_size=2,
        cache_dir=tmp_path_factory.mktemp("cache"),
    )


def launch(data: JsonlTaggedPackedDataset, monkeypatch: pytest.MonkeyPatch, *, ranks: int) -> Any:
    """Three steps and their updates, of which none is resolved: the last one, and how to resolve it."""
    # torch's fused kernels know their result on this device, though they are meant for others.
    monkeypatch.setattr(importlib.import_module("torch.optim.adam"), "_device_dtype_check_for_fused", lambda *_: None)
    arch = Qwen3Arch(
        vocab_size=2048,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=64,
    )
    model = build_on_meta(arch.hf_config(eos_token_id=0, pad_token_id=0))
    groups = [ParamGroup("all", tuple(model.named_parameters()))]
    optimizer = build_optimizer("adamw", groups, fused=True, betas=(0.9, 0.95), eps=1e-8)
    guard = UpdateGuard(optimizer, META)
    gradients = GradientComputer(
        model,
        layout=Layout(Degrees(ranks, 1, 1, fsdp=False), 0, META, None, None),
        max_norm=1.0,
        seed=0,
        autocast=nullcontext,
        activity=Activity(),
    )
    batches = DevicePrefetcher(data, META)
    for step in (1, 2, 3):
        micro_batches = batches.take(2)
        flight = gradients.launch(step, micro_batches, stop=StopRequest(), details=False)
        guard.watch(flight.loss_sum, flight.grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        batches.fetch(2)
    return gradients, flight


def test_a_step_and_its_update_read_no_value(data: JsonlTaggedPackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    with Copies() as copies:
        gradients, flight = launch(data, monkeypatch, ranks=1)
    assert copies.blocking, "batches were copied"
    assert not any(copies.blocking)
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        gradients.resolve(flight)  # which is the one thing that needs values


@pytest.mark.usefixtures("two_ranks")
def test_nor_do_the_sums_over_ranks(data: JsonlTaggedPackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    with Copies() as copies:
        launch(data, monkeypatch, ranks=2)
    assert not any(copies.blocking)
