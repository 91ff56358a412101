"""Steps are launched without waiting for a CUDA device, by torch's own account."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from molgen_pretrain.config.schema import SAMPLE_DIR
from molgen_pretrain.data.dataset import JsonlTaggedPackedDataset
from molgen_pretrain.data.loader import build_loader
from molgen_pretrain.data.prefetch import DevicePrefetcher
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.model.qwen3 import Qwen3Arch, build_on_meta, materialize
from molgen_pretrain.optim.guard import UpdateGuard
from molgen_pretrain.optim.optimizer import build_optimizer
from molgen_pretrain.optim.param_groups import ParamGroup
from molgen_pretrain.parallel.activity import Activity
from molgen_pretrain.parallel.degrees import Degrees
from molgen_pretrain.parallel.layout import Layout
from molgen_pretrain.signals import StopRequest
from molgen_pretrain.training.update import GradientComputer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("document_mask", [False, True])
def test_launching_steps_waits_for_nothing(tmp_path_factory: pytest.TempPathFactory, document_mask: bool) -> None:
    cuda = torch.device("cuda", 0)
    tokenizer = UnitTokenizer.load(SAMPLE_DIR / "tokenizer")
    data = JsonlTaggedPackedDataset(
        paths=SAMPLE_DIR / "valid",
        tokenizer=tokenizer,
        seq_len=512,
        local_batch_size=4,
        cache_dir=tmp_path_factory.mktemp("cache"),
        document_mask=document_mask,
    )
    arch = Qwen3Arch(
        vocab_size=tokenizer.size,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        intermediate_size=256,
    )
    model = build_on_meta(arch.hf_config(eos_token_id=0, pad_token_id=0), document_mask=document_mask)
    materialize(model, device=cuda, seed=0)
    groups = [ParamGroup("all", tuple(model.named_parameters()))]
    optimizer = build_optimizer("adamw", groups, fused=None, betas=(0.9, 0.95), eps=1e-8)
    guard = UpdateGuard(optimizer, cuda)
    gradients = GradientComputer(
        model,
        layout=Layout(Degrees(1, 1, 1, fsdp=False), 0, cuda, None, None),
        max_norm=1.0,
        seed=0,
        autocast=partial(torch.autocast, "cuda", torch.bfloat16),
        activity=Activity(),
    )
    batches = DevicePrefetcher(build_loader(data, pin_memory=True), cuda)
    flights = []
    try:
        for step in range(1, 7):
            # The first steps load kernels and make the optimizer's state, which may take its time.
            torch.cuda.set_sync_debug_mode("error" if step > 2 else "default")
            flights.append(gradients.launch(step, batches.take(2), stop=StopRequest(), details=False))
            guard.watch(flights[-1].loss_sum, flights[-1].grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            batches.fetch(2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    losses = [gradients.resolve(flight).loss for flight in flights]
    assert all(0 < loss < 20 for loss in losses)
