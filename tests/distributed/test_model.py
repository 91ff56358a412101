"""The model on FSDP2 shards, with document mask and loss by class: the numbers of one process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from molgen_pretrain.model.loss import IGNORE_INDEX
from molgen_pretrain.model.qwen3 import Qwen3Arch, build_on_meta, materialize
from molgen_pretrain.optim.optimizer import clip_grad_norm
from molgen_pretrain.parallel.degrees import resolve_degrees
from molgen_pretrain.parallel.layout import build_layout
from molgen_pretrain.parallel.parallelize import Wrapping, parallelize

ARCH = Qwen3Arch(
    vocab_size=61,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=50,
)
CPU = torch.device("cpu")
CLASSES = 3


def global_batch() -> dict[str, Tensor]:
    """Four rows of 24 tokens, three units each, with unequal numbers of labels on the two halves."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(ARCH.vocab_size, (4, 24), generator=generator)
    labels = input_ids.roll(-1, dims=1)
    labels[:, [6, 15, 23]] = IGNORE_INDEX
    labels[2, 10:] = IGNORE_INDEX
    position_ids = torch.cat([torch.arange(n) for n in (7, 9, 8)]).repeat(4, 1)
    token_classes = torch.randint(CLASSES, (4, 24), generator=generator).to(torch.uint8)
    return {"input_ids": input_ids, "labels": labels, "position_ids": position_ids, "token_classes": token_classes}


def loss_and_gradient(chunk_tokens: int) -> dict[str, Any]:
    """Loss sums and gradient norm of the global batch, split over the ranks there are."""
    ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    config = ARCH.hf_config(eos_token_id=0, pad_token_id=0)
    model = build_on_meta(config, loss_chunk_tokens=chunk_tokens, document_mask=True, loss_classes=CLASSES)
    degrees = resolve_degrees(replicate=1, shard=ranks, tensor=1, world_size=ranks)
    layout = build_layout(degrees, rank=rank, device=CPU)
    fill = partial(materialize, model, device=CPU, seed=3)
    parallelize(model, model.model.layers, layout, Wrapping(), fill=fill)
    batch = global_batch()
    tokens = int((batch["labels"] != IGNORE_INDEX).sum())
    sums = model(**{name: tensor.chunk(ranks)[rank] for name, tensor in batch.items()})
    (sums.total * (ranks / tokens)).backward()
    assert sums.by_class is not None
    parts = torch.cat([sums.total.detach().unsqueeze(0), sums.by_class])
    if ranks > 1:
        dist.all_reduce(parts)
    return {"sums": parts.tolist(), "grad_norm": float(clip_grad_norm(model.parameters(), 1e9))}


@pytest.mark.parametrize("chunk_tokens", [0, 20])
def test_shards_have_the_loss_and_gradient_of_one_process(
    run_distributed: Callable[..., Any], chunk_tokens: int
) -> None:
    expected = loss_and_gradient(chunk_tokens)
    for result in run_distributed(loss_and_gradient, 2, chunk_tokens):
        assert result["sums"] == pytest.approx(expected["sums"], rel=1e-5)
        assert result["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)
