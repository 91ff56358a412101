import pytest
import torch
from torch import nn

from molgen_pretrain.optim.optimizer import build_adamw, clip_grad_norm
from molgen_pretrain.optim.param_groups import split_param_groups
from molgen_pretrain.optim.scheduler import ScheduleApplier
from molgen_pretrain.schedules import WSDS


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 1))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def test_scheduled_adamw_equals_torch_adamw_with_lr_set_by_hand() -> None:
    schedule = WSDS(lr_max=1e-2, lr_min=1e-3, warmup_steps=3, checkpoints=(10,), start_weight_decay=0.1)
    ours, theirs = network(), network()
    groups = split_param_groups(ours, decay_norms_and_biases=True)
    applier = ScheduleApplier(build_adamw(groups, betas=(0.9, 0.95), eps=1e-8, fused=False), schedule)
    reference = torch.optim.AdamW(theirs.parameters(), betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, foreach=False)
    for n in range(1, 13):
        applier.prepare(n)
        reference.param_groups[0]["lr"] = schedule.lr(n)
        step(ours, applier.optimizer, n)
        step(theirs, reference, n)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_norms_and_biases_can_go_without_decay() -> None:
    model = network()
    groups = split_param_groups(model, decay_norms_and_biases=False)
    optimizer = build_adamw(groups, betas=(0.9, 0.95), eps=1e-8, fused=None)
    ScheduleApplier(optimizer, WSDS(lr_max=1.0, lr_min=0.1, checkpoints=(9,), start_weight_decay=0.3)).prepare(1)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {decays[id(p)] for p in model.parameters() if p.ndim > 1} == {0.3}
    assert {decays[id(p)] for p in model.parameters() if p.ndim <= 1} == {0.0}


def test_every_parameter_is_in_exactly_one_group() -> None:
    model = network()
    for decay in (True, False):
        grouped = [p for g in split_param_groups(model, decay_norms_and_biases=decay) for p in g.parameters]
        assert sorted(map(id, grouped)) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize("max_norm", [0.0, 0.01, 1e6])
def test_clipping_equals_torch(max_norm: float) -> None:
    ours, theirs = network(), network()
    for model in (ours, theirs):
        model(torch.ones(3, 4)).sum().backward()
    norm = clip_grad_norm(ours.parameters(), max_norm)
    expected = nn.utils.clip_grad_norm_(theirs.parameters(), max_norm if max_norm > 0 else torch.inf)
    torch.testing.assert_close(norm, expected)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
