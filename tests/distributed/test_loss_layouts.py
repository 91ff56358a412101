"""The fused loss reads the head's weight without calling the head: sharded and copied, it gives the gradients of one
process with the plain loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from molgen_pretrain.model.loss import IGNORE_INDEX, LossKernel, LossSums, token_loss_sum
from molgen_pretrain.parallel.degrees import resolve_degrees
from molgen_pretrain.parallel.layout import build_layout
from molgen_pretrain.parallel.parallelize import Wrapping, gradient_sync, parallelize

ROWS, SEQ_LEN, HIDDEN, VOCAB = 8, 12, 16, 41
CPU = torch.device("cpu")


class Case(NamedTuple):
    """One way to compute the same gradients on two ranks."""

    shard: int = 2
    reshard: Any = "default"
    cpu_offload: bool = False
    bfloat16: bool = False
    accumulation: int = 1
    tied: bool = True


CASES = [
    *[Case(reshard=reshard, accumulation=2, tied=tied) for reshard in ("always", "never") for tied in (True, False)],
    Case(cpu_offload=True),
    Case(shard=1, accumulation=2),
    Case(bfloat16=True, accumulation=2),
]


class TinyModel(nn.Module):
    """Embedding, a block and a head."""

    def __init__(self, *, tied: bool, kernel: LossKernel) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding = nn.Embedding(VOCAB, HIDDEN)
        self.block = nn.Linear(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, VOCAB, bias=False)
        self.kernel = kernel
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor, labels: Tensor) -> LossSums:
        hidden = self.block(self.embedding(input_ids))
        return token_loss_sum(self.head, hidden, labels, kernel=self.kernel, chunk_tokens=5)


def global_batch() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(VOCAB, (ROWS, SEQ_LEN + 1), generator=torch.Generator().manual_seed(0))
    labels = tokens[:, 1:].clone()
    labels[torch.arange(SEQ_LEN) > torch.arange(ROWS).unsqueeze(1)] = IGNORE_INDEX
    return tokens[:, :-1], labels


def gradients(case: Case, kernel: LossKernel = "fused") -> dict[str, list[float]]:
    """Of the summed loss of the global batch, by parameter."""
    ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    shard = min(case.shard, ranks)
    degrees = resolve_degrees(replicate=ranks // shard, shard=shard, tensor=1, world_size=ranks)
    layout = build_layout(degrees, rank=rank, device=CPU)
    model = TinyModel(tied=case.tied, kernel=kernel)
    wrapping = Wrapping(
        compute_dtype=torch.bfloat16 if case.bfloat16 else torch.float32,
        reshard_after_forward=case.reshard,
        cpu_offload=case.cpu_offload,
    )
    called = parallelize(model, [model.block], layout, wrapping, fill=lambda weights_device: None)
    micro_batches = zip(*(part.chunk(ranks)[rank].chunk(case.accumulation) for part in global_batch()), strict=True)
    for number, (input_ids, labels) in enumerate(micro_batches):
        with gradient_sync(called, is_last=number == case.accumulation - 1):
            (called(input_ids, labels).total * ranks).backward()
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        whole = parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
        found[name] = whole.flatten().tolist()
    return found


def run_cases(cases: list[dict[str, Any]]) -> list[dict[str, list[float]]]:
    return [gradients(Case(**case)) for case in cases]


def test_gradients_are_those_of_one_process(run_distributed: Callable[..., Any]) -> None:
    for results in run_distributed(run_cases, 2, [case._asdict() for case in CASES]):
        for case, result in zip(CASES, results, strict=True):
            expected = gradients(Case(tied=case.tied), "plain")
            assert result.keys() == expected.keys(), case
            for name, values in expected.items():
                found, wanted = torch.tensor(result[name]), torch.tensor(values)
                tolerance = 1e-2 if case.bfloat16 else 1e-6
                assert (found - wanted).norm() < tolerance * wanted.norm(), f"{case}: {name}"
