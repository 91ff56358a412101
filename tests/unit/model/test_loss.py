"""The loss kernels against plain arithmetic: same loss and gradients, less memory, no work for what has no label."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from molgen_pretrain.model import linear_cross_entropy as lce
from molgen_pretrain.model.loss import IGNORE_INDEX, LossKernel, LossSums, token_loss_sum
from molgen_pretrain.model.loss_kernels import default_chunk_tokens

BATCH, SEQ_LEN, HIDDEN, VOCAB, CLASSES = 4, 40, 24, 500, 3
TOKENS = BATCH * SEQ_LEN
KERNELS: list[LossKernel] = ["fused", "checkpointed", "plain"]
CHUNKED: list[LossKernel] = ["fused", "checkpointed"]


class Problem(NamedTuple):
    """What a loss is computed of; `head` and `hidden` receive gradients."""

    head: nn.Linear
    hidden: Tensor
    labels: Tensor
    token_classes: Tensor

    def loss(self, **options: Any) -> LossSums:
        return token_loss_sum(self.head, self.hidden, self.labels, **options)

    def gradients(self, loss: Tensor) -> list[Tensor]:
        """Of a multiple of the loss: the backward is handed some scale in training."""
        return list(torch.autograd.grad(loss * 0.37, [self.hidden, self.head.weight]))


def problem(dtype: torch.dtype = torch.float32, *, labelled: float = 0.7) -> Problem:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(VOCAB, (BATCH, SEQ_LEN), generator=generator)
    labels[torch.rand(BATCH, SEQ_LEN, generator=generator) >= labelled] = IGNORE_INDEX
    head = nn.Linear(HIDDEN, VOCAB, bias=False, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(torch.randn(VOCAB, HIDDEN, generator=generator))
    hidden = torch.randn(BATCH, SEQ_LEN, HIDDEN, generator=generator).to(dtype).requires_grad_()
    return Problem(head, hidden, labels, torch.randint(CLASSES, labels.shape, generator=generator).to(torch.uint8))


def reference(given: Problem) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Loss, losses by class and gradients in float64, from the definition."""
    weight, hidden = (tensor.detach().double().requires_grad_() for tensor in (given.head.weight, given.hidden))
    probabilities = (hidden @ weight.T).softmax(-1)
    trained = given.labels != IGNORE_INDEX
    losses = -probabilities[trained].gather(1, given.labels[trained].unsqueeze(1)).squeeze(1).log()
    by_class = torch.stack([losses[given.token_classes[trained] == number].sum() for number in range(CLASSES)])
    return losses.sum().detach(), by_class.detach(), list(torch.autograd.grad(losses.sum() * 0.37, [hidden, weight]))


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("chunk_tokens", [None, 0, 1, 16, TOKENS - 1, 10 * TOKENS])
def test_loss_and_gradients_are_those_of_the_definition(kernel: LossKernel, chunk_tokens: int | None) -> None:
    given = problem()
    loss, by_class, gradients = reference(given)
    sums = given.loss(
        kernel=kernel,
        chunk_tokens=chunk_tokens,
        token_classes=given.token_classes,
        classes=CLASSES,
        trained_tokens=None,
    )
    assert sums.by_class is not None
    assert not sums.by_class.requires_grad
    assert sums.total.dtype == sums.by_class.dtype == torch.float32
    assert error(sums.total.detach(), loss) < 1e-6
    assert error(sums.by_class, by_class) < 1e-6
    for found, expected in zip(given.gradients(sums.total), gradients, strict=True):
        assert error(found, expected) < 1e-6
    assert torch.equal(given.loss(kernel=kernel, chunk_tokens=chunk_tokens).total, sums.total)


def test_gradients_are_those_of_finite_differences() -> None:
    given, step = problem(torch.float64), 1e-5
    options: dict[str, Any] = {"kernel": "fused", "chunk_tokens": 16}
    gradients = given.gradients(given.loss(**options).total)
    for tensor, gradient in zip((given.hidden, given.head.weight), gradients, strict=True):
        direction = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        losses = []
        with torch.no_grad():
            for move in (step, -2 * step, step):  # and back
                tensor.add_(direction, alpha=move)
                losses.append(given.loss(**options).total)
        slope = (losses[0] - losses[1]) / (2 * step)
        torch.testing.assert_close((gradient * direction).sum(), slope * 0.37, rtol=1e-7, atol=0)


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_is_as_precise_as_plain(autocast: bool) -> None:
    given = problem(torch.float32 if autocast else torch.bfloat16)
    expected_loss, _, expected = reference(given)
    errors = {}
    for kernel in ("plain", "fused"):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = given.loss(kernel=kernel, chunk_tokens=16).total
        gradients = given.gradients(loss)
        assert loss.dtype == torch.float32
        assert [gradient.dtype for gradient in gradients] == [given.hidden.dtype, given.head.weight.dtype]
        errors[kernel] = [error(loss.detach(), expected_loss), *map(error, gradients, expected)]
    for of_fused, of_plain in zip(errors["fused"], errors["plain"], strict=True):
        assert of_fused < 1.1 * of_plain + 1e-6


def test_a_label_of_no_probability_has_its_loss() -> None:
    head = nn.Linear(1, 3, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1000.0], [0.0], [-1000.0]]))
    hidden, labels = torch.ones(1, 3, 1), torch.tensor([[0, 1, 2]])
    assert float(token_loss_sum(head, hidden, labels, kernel="fused").total.detach()) == 3000


@pytest.mark.parametrize("kernel", KERNELS)
def test_without_labels_loss_and_gradients_are_zero(kernel: LossKernel) -> None:
    given = problem(labelled=0)
    loss = given.loss(kernel=kernel, chunk_tokens=16).total
    assert loss == 0
    assert not any(gradient.any() for gradient in given.gradients(loss))


@pytest.mark.parametrize("frozen", ["head", "hidden"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    given = problem()
    gradients = dict(zip(("hidden", "head"), reference(given)[2], strict=True))
    (given.head.weight if frozen == "head" else given.hidden).requires_grad_(False)
    (given.loss(kernel="fused", chunk_tokens=16).total * 0.37).backward()
    grads = {"hidden": given.hidden.grad, "head": given.head.weight.grad}
    assert grads.pop(frozen) is None
    ((name, gradient),) = grads.items()
    assert gradient is not None
    assert error(gradient, gradients[name]) < 1e-6


def test_a_second_backward_is_refused_rather_than_wrong() -> None:
    loss = problem().loss(kernel="fused").total
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


def test_a_head_with_a_bias_is_refused() -> None:
    given = problem()._replace(head=nn.Linear(HIDDEN, VOCAB))
    with pytest.raises(ValueError, match="bias"):
        given.loss(kernel="fused")


class LargestTensor(TorchDispatchMode):
    """Elements of the largest new tensor, those of the weight's size apart."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0
        self.of_weight_size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not func.is_view:
            if result.numel() == VOCAB * HIDDEN:
                self.of_weight_size += 1
            else:
                self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("kernel", CHUNKED)
def test_logits_exist_for_a_chunk_only(kernel: LossKernel) -> None:
    given = problem()
    with LargestTensor() as seen:
        given.gradients(given.loss(kernel=kernel, chunk_tokens=16).total)
    assert seen.elements == 16 * VOCAB
    with LargestTensor() as seen:
        given.gradients(given.loss(kernel="plain", chunk_tokens=16).total)
    assert seen.elements == TOKENS * VOCAB


def matmul_flops(given: Problem, *, grad: bool = True, **options: Any) -> int:
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(grad):
        loss = given.loss(**options).total
        if grad:
            loss.backward()
    return counter.get_total_flops()


def test_only_labels_are_computed_and_only_what_is_needed() -> None:
    given = problem()
    trained = int((given.labels != IGNORE_INDEX).sum())
    computed = -(-trained // 64) * 64  # few shapes: each that a CPU's library has seen takes memory
    assert trained < computed < TOKENS
    product = 2 * computed * HIDDEN * VOCAB
    assert matmul_flops(given, kernel="fused", chunk_tokens=16) == 3 * product
    assert matmul_flops(given, grad=False, kernel="fused", chunk_tokens=16) == product
    given.head.weight.requires_grad_(False)
    assert matmul_flops(given, kernel="fused", chunk_tokens=16) == 2 * product


def test_validation_makes_no_gradient() -> None:
    given = problem()
    with torch.no_grad(), LargestTensor() as seen:
        loss = given.loss(kernel="fused", chunk_tokens=16).total
    assert not loss.requires_grad
    assert seen.of_weight_size == 0
    assert error(loss, reference(given)[0]) < 1e-6


@pytest.mark.parametrize(("trained_tokens", "computed"), [(None, 160), (60, 64), (64, 64), (70, 128), (160, 160)])
def test_a_device_is_not_waited_for(trained_tokens: int | None, computed: int) -> None:
    # Tensors without values: whatever asked for one, and so waited for the device, would fail.
    given = Problem(*(part.to("meta") for part in problem()))
    with FlopCounterMode(display=False) as counter:
        loss = given.loss(kernel="fused", chunk_tokens=50, trained_tokens=trained_tokens).total
        gradients = given.gradients(loss)
    assert [gradient.shape for gradient in gradients] == [given.hidden.shape, given.head.weight.shape]
    assert counter.get_total_flops() == 3 * 2 * computed * HIDDEN * VOCAB


def test_the_kernel_for_gpus_computes_the_same() -> None:
    given = problem()
    labels, logits = given.labels.flatten(), given.head(given.hidden).detach().flatten(0, 1)
    trained = labels != IGNORE_INDEX
    expected = logits[trained].contiguous()
    expected_losses = lce._losses_in_cache(expected, labels[trained], True)
    kernel = torch.compile(lce._losses_in_one_kernel, backend="aot_eager", fullgraph=True, dynamic=False)
    before = logits.clone()
    torch.testing.assert_close(kernel(logits, labels, False)[trained], expected_losses)
    assert torch.equal(logits, before)
    losses = kernel(logits, labels, True)
    torch.testing.assert_close(losses[trained], expected_losses)
    torch.testing.assert_close(logits[trained], expected)
    assert not losses[~trained].any()
    assert not logits[~trained].any()


def test_chunks_are_larger_for_small_vocabularies_and_gpus() -> None:
    assert default_chunk_tokens(151_936, device_type="cpu") < default_chunk_tokens(512, device_type="cpu")
    assert default_chunk_tokens(151_936, device_type="cpu") < default_chunk_tokens(151_936, device_type="cuda")
