"""Attention in blocks is scaled_dot_product_attention with the mask of the units."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from molgen_pretrain.model.blocked_attention import blocked_attention
from molgen_pretrain.model.document_mask import block_causal_mask

SEQ_LEN = 300  # two blocks and a part of one
BORDERS = {"row": [[0]], "units": [[0, 40, 41, 200], [0, 299], [0, 128, 256]]}  # where units begin, by row


def places(rows: list[list[int]]) -> Tensor:
    """position_ids of rows whose units begin there."""
    index = torch.arange(SEQ_LEN)
    return torch.stack(
        [index - torch.tensor(row)[torch.bucketize(index, torch.tensor(row), right=True) - 1] for row in rows]
    )


def inputs(dtype: torch.dtype) -> list[Tensor]:
    """Query, key and value of 3 rows with 4 and 2 heads, as projections leave them; the gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(3, SEQ_LEN, heads, 16, generator=generator).to(dtype) for heads in (4, 2, 2, 4)]
    return [tensor.transpose(1, 2) for tensor in made]


def run(attention: object, query: Tensor, key: Tensor, value: Tensor, gradient: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
    attended = attention(*leaves)
    return [attended, *torch.autograd.grad(attended, leaves, gradient)]


def reference(position_ids: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    mask = block_causal_mask(position_ids)
    return run(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3, enable_gqa=True), *tensors
    )


@pytest.mark.parametrize("kind", BORDERS)
def test_values_and_gradients_are_those_of_the_mask(kind: str) -> None:
    position_ids, tensors = places(BORDERS[kind]), inputs(torch.float32)
    found = run(lambda q, k, v: blocked_attention(q, k, v, position_ids, 0.3), *tensors)
    for ours, theirs in zip(found, reference(position_ids, tensors), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", BORDERS)
def test_bfloat16_is_as_close_as_its_rounding(kind: str) -> None:
    position_ids, tensors = places(BORDERS[kind]), inputs(torch.bfloat16)
    found = run(lambda q, k, v: blocked_attention(q, k, v, position_ids, 0.3), *tensors)
    for ours, exact in zip(found, reference(position_ids, [tensor.float() for tensor in tensors]), strict=True):
        assert ours.dtype is torch.bfloat16
        assert (ours.float() - exact).norm() / exact.norm() < 2**-7  # the spacing of bfloat16 at 1


def test_the_compiler_is_told_the_truth_about_the_operator() -> None:
    *tensors, _ = inputs(torch.float32)
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    torch.library.opcheck(blocked_attention, (*leaves, places(BORDERS["units"]), 0.3))
