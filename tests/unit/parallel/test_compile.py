"""A whole step is free of graph breaks, and one compilation serves every block."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from molgen_pretrain.model.qwen3 import Qwen3Arch, Qwen3ForPretraining, build_on_meta, materialize
from molgen_pretrain.parallel.degrees import resolve_degrees
from molgen_pretrain.parallel.layout import build_layout
from molgen_pretrain.parallel.parallelize import Wrapping, parallelize

ARCH = Qwen3Arch(
    vocab_size=32, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
    intermediate_size=24,
)  # fmt: skip
CPU = torch.device("cpu")
TOKENS = torch.arange(24).reshape(2, 12)
PLACES = (torch.arange(12) % 5).expand(2, 12)


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def build(*, document_mask: bool = False, fused_ops: bool = True, **wrapping: Any) -> Qwen3ForPretraining:
    config = ARCH.hf_config(eos_token_id=0, pad_token_id=0)
    model = build_on_meta(config, document_mask=document_mask, fused_ops=fused_ops)
    layout = build_layout(resolve_degrees(replicate=1, shard=1, tensor=1, world_size=1), rank=0, device=CPU)
    fill = partial(materialize, model, device=CPU, seed=0)
    parallelize(model, list(model.model.layers), layout, Wrapping(**wrapping), fill=fill)
    return model


def train(model: Qwen3ForPretraining, *, places: torch.Tensor | None, steps: int = 2) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        for micro_batch in (TOKENS, TOKENS.flip(0)):
            loss = model(micro_batch, micro_batch, places).total
            loss.backward()
            losses.append(float(loss.detach()))
        optimizer.step()
        optimizer.zero_grad()
    return losses


@pytest.mark.parametrize("kind", ["none", "selective", "full"])
@pytest.mark.parametrize("places", [None, PLACES], ids=["rows", "documents"])
def test_one_graph_for_all_blocks_and_steps(kind: str, places: torch.Tensor | None, monkeypatch) -> None:
    # The compiler's front end finds breaks and recompilations; code for each operator would only take time.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    model = build(document_mask=places is not None, activation_checkpointing=kind, compile=True)
    losses = train(model, places=places)
    assert counters["stats"]["unique_graphs"] == 1
    with torch.no_grad():
        model.eval()(TOKENS, TOKENS, places)
        model.train()
    train(model, places=places, steps=1)
    assert counters["stats"]["unique_graphs"] == 2  # validation has one of its own
    assert not counters["graph_break"]
    eager = build(document_mask=places is not None)
    assert losses == pytest.approx(train(eager, places=places), rel=1e-5)


@pytest.mark.slow
def test_generated_code_trains_the_same() -> None:
    compiled = build(compile=True)
    assert train(compiled, places=None) == pytest.approx(train(build(fused_ops=False), places=None), rel=1e-5)
    assert counters["stats"]["unique_graphs"] == 1
