"""The fused loss on a CUDA device, as precise as plain and without waiting for it; skipped where there is none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from molgen_pretrain.model.loss import IGNORE_INDEX, LossKernel, token_loss_sum

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
BATCH, SEQ_LEN, HIDDEN, VOCAB = 2, 500, 256, 3000
TOKENS = BATCH * SEQ_LEN
DEVICE = "cuda"
Computed = Callable[[nn.Linear, Tensor, Tensor], Tensor]


def gradients(computed: Computed, dtype: torch.dtype, *, values: torch.dtype) -> list[Tensor]:
    """Loss and gradients with respect to hidden states and weight, which are of `dtype` and rounded to `values`."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, HIDDEN, generator=generator).to(values) for n in (TOKENS, VOCAB))
    labels = torch.randint(VOCAB, (TOKENS,), generator=generator)
    labels[torch.rand(TOKENS, generator=generator) > 0.7] = IGNORE_INDEX
    head = nn.Linear(HIDDEN, VOCAB, bias=False, device=DEVICE, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(weight)
    hidden = hidden.to(DEVICE, dtype).requires_grad_()
    loss = computed(head, hidden.unflatten(0, (BATCH, SEQ_LEN)), labels.to(DEVICE).unflatten(0, (BATCH, SEQ_LEN)))
    found = torch.autograd.grad(loss * 0.37, [hidden, head.weight])
    assert [gradient.dtype for gradient in found] == [dtype, dtype]
    return [loss.detach(), *found]


def definition(head: nn.Linear, hidden: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(head(hidden).flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)]
)
def test_the_fused_loss_is_as_precise_as_plain(dtype: torch.dtype, autocast: bool, told: bool) -> None:
    def of(kernel: LossKernel) -> Computed:
        def computed(head: nn.Linear, hidden: Tensor, labels: Tensor) -> Tensor:
            trained = int((labels != IGNORE_INDEX).sum()) if told else None
            with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
                return token_loss_sum(
                    head, hidden, labels, kernel=kernel, chunk_tokens=300, trained_tokens=trained
                ).total

        return computed

    exact = gradients(definition, torch.float64, values=dtype)
    plain, fused = (gradients(of(kernel), dtype, values=dtype) for kernel in ("plain", "fused"))
    for of_fused, of_plain, expected in zip(fused, plain, exact, strict=True):
        allowed = 1.1 * (of_plain.double() - expected).norm() + 1e-6 * expected.norm()
        assert (of_fused.double() - expected).norm() < allowed


def test_nothing_waits_for_the_device() -> None:
    head = nn.Linear(HIDDEN, VOCAB, bias=False, device=DEVICE, dtype=torch.bfloat16)
    hidden = torch.randn(BATCH, SEQ_LEN, HIDDEN, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(VOCAB, (BATCH, SEQ_LEN), device=DEVICE)
    labels[:, ::3] = IGNORE_INDEX

    def step(trained_tokens: int | None) -> None:
        sums = token_loss_sum(
            head, hidden, labels, chunk_tokens=300, trained_tokens=trained_tokens, token_classes=labels, classes=3
        )
        sums.total.backward()

    step(666)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(666)
        step(None)
    finally:
        torch.cuda.set_sync_debug_mode("default")
