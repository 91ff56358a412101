"""What is done to a model on a CUDA device besides spreading it, on one rank; skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

from molgen_pretrain.model.qwen3 import Qwen3Arch, build_on_meta, materialize
from molgen_pretrain.optim.optimizer import clip_grad_norm
from molgen_pretrain.parallel.degrees import resolve_degrees
from molgen_pretrain.parallel.distributed import joined_world
from molgen_pretrain.parallel.layout import build_layout
from molgen_pretrain.parallel.parallelize import Wrapping, gradient_sync, parallelize

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
ARCH = Qwen3Arch(
    vocab_size=512, hidden_size=256, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=4, head_dim=64,
    intermediate_size=512,
)  # fmt: skip


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with joined_world("cuda", needs_group=True, timeout_seconds=120) as world:
        yield world.device


def train(
    device: torch.device, *, shard: int, documents: bool = False, fused: bool = True, **wrapping: Any
) -> list[float]:
    """Losses and gradient norms of three clipped updates, two micro-batches each."""
    model = build_on_meta(ARCH.hf_config(eos_token_id=0, pad_token_id=0), document_mask=documents, fused_ops=fused)
    layout = build_layout(resolve_degrees(replicate=1, shard=shard, tensor=1, world_size=1), rank=0, device=device)
    fill = partial(materialize, model, device=device, seed=3)
    called = parallelize(model, model.model.layers, layout, Wrapping(**wrapping), fill=fill)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    found = []
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(0, ARCH.vocab_size, (4, 512), generator=generator).to(device)
        places = (torch.arange(512) % 200).expand(2, 512).to(device) if documents else None
        borders = torch.tensor([0, 200, 400, 512, 712, 912, 1024], dtype=torch.int32, device=device)
        losses = []
        for number, rows in enumerate(tokens.split(2)):
            with gradient_sync(called, is_last=number == 1):
                losses.append(called(rows, rows, places, unit_borders=borders if documents else None).total)
                (losses[-1] / tokens.numel()).backward()
        found += [float(sum(loss.detach() for loss in losses)), float(clip_grad_norm(model.parameters(), 0.5))]
        optimizer.step()
        optimizer.zero_grad()
    return found


@pytest.mark.parametrize(
    "wrapping",
    [
        {},
        {"cpu_offload": True},
        {"activation_checkpointing": "full", "reshard_after_forward": "always"},
        {"activation_checkpointing": "selective", "compile": True, "reshard_after_forward": "never", "prefetch": 1},
    ],
    ids=str,
)
def test_float32_is_that_of_the_plain_model(device: torch.device, wrapping: dict[str, Any]) -> None:
    assert train(device, shard=-1, **wrapping) == pytest.approx(train(device, shard=1, fused=False), rel=1e-4)


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_float8_is_close_to_bfloat16(device: torch.device, recipe: Any, compiled: bool) -> None:
    pytest.importorskip("torchao", reason="needs torchao, the extra float8")
    if torch.cuda.get_device_capability(device) < (8, 9):
        pytest.skip("this GPU has no float8 products")
    wrapping = {"compute_dtype": torch.bfloat16, "float8": recipe, "compile": compiled}
    assert train(device, shard=-1, **wrapping) == pytest.approx(train(device, shard=1), rel=5e-2)


@pytest.mark.parametrize("kind", ["none", "selective", "full"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_bfloat16_with_document_mask(device: torch.device, kind: Any, compiled: bool) -> None:
    wrapping = {"compute_dtype": torch.bfloat16, "activation_checkpointing": kind, "compile": compiled}
    plain = train(device, shard=1, documents=True)
    assert train(device, shard=-1, documents=True, **wrapping) == pytest.approx(plain, rel=2e-2)
