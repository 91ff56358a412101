from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from molgen_pretrain.checkpoint.checkpointer import Checkpointer
from molgen_pretrain.checkpoint.state import named_tensors


class TiedModel(nn.Module):
    """Embedding tied to the head, a norm, a persistent and a non-persistent buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("seen", torch.tensor(0))
        self.register_buffer("cache", torch.zeros(3), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.embed(tokens)))


def make_training(
    seed: int, steps: int = 2, optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
) -> tuple[Any, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = TiedModel()
    its_optimizer = optimizer(model.parameters())
    for _ in range(steps):
        model.seen += 1
        model(torch.arange(7)).square().sum().backward()
        its_optimizer.step()
        its_optimizer.zero_grad()
    return model, its_optimizer


@pytest.fixture
def training() -> Callable[..., tuple[Any, torch.optim.Optimizer]]:
    """`training(seed, steps, optimizer)` makes a tiny tied model and an optimizer that has stepped."""
    return make_training


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, dict[int, dict[str, Tensor]]]:
    """A folder with checkpoints of steps 1, 2 and 3, and the tensors that each holds."""
    contents = {}
    checkpointer = Checkpointer(tmp_path, keep_latest_k=0)
    for step in (1, 2, 3):
        model, optimizer = make_training(step, step)
        checkpointer.save(step, model=model, optimizer=optimizer, state={"step": step})
        contents[step] = named_tensors(model, optimizer)
    return tmp_path, contents


@pytest.fixture
def holds() -> Callable[[Any, Any, dict[str, Tensor]], bool]:
    """`holds(model, optimizer, expected)`: their tensors are these, bit for bit."""

    def same(model: Any, optimizer: Any, expected: dict[str, Tensor]) -> bool:
        tensors = named_tensors(model, optimizer)
        return all(torch.equal(tensors[name], expected[name]) for name in expected)

    return same
