"""Each optimizer is torch's own, with lr and weight decay set by hand, bit for bit; and survives a checkpoint."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from molgen_pretrain.checkpoint.checkpointer import Checkpointer
from molgen_pretrain.optim.muon import MuonAdamW, orthogonalize, shape_factor, shard_shapes
from molgen_pretrain.optim.optimizer import build_muon, build_optimizer, clip_grad_norm
from molgen_pretrain.optim.param_groups import GroupRule, build_param_groups
from molgen_pretrain.optim.scheduler import ScheduleApplier
from molgen_pretrain.schedules import WSDS

Tiny = Callable[..., nn.Module]
SetGradients = Callable[[nn.Module, int], None]

SCHEDULE = WSDS(lr_max=1e-2, lr_min=1e-3, warmup_steps=3, checkpoints=(10,), start_weight_decay=0.1)
ADAM = {"betas": (0.9, 0.95), "eps": 1e-8}
MUON = {"momentum": 0.9, "nesterov": True, "ns_steps": 4, "adjust_lr": "original", "adamw_lr_scale": 0.1, **ADAM}
SETTINGS: dict[str, dict[str, Any]] = {
    "adamw": ADAM,
    "adam": ADAM,
    "sgd": {"momentum": 0.9, "nesterov": True},
    "muon": MUON,
}


def ours(kind: str, model: nn.Module, *, fused: bool | None = False, **changes: Any) -> ScheduleApplier:
    groups = build_param_groups(model.named_parameters(), rules=[GroupRule("*norm*", wd_scale=0.0)])
    return ScheduleApplier(build_optimizer(kind, groups, fused=fused, **{**SETTINGS[kind], **changes}), SCHEDULE)


def is_hidden(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and "embed" not in name and "lm_head" not in name


def theirs(kind: str, model: nn.Module) -> list[tuple[torch.optim.Optimizer, float]]:
    """Torch's optimizers with the factor on their lr, two groups each: with weight decay, and the norms without."""
    named = dict(model.named_parameters())
    norms = {"params": [p for n, p in named.items() if "norm" in n], "weight_decay": 0.0}
    rest = [p for n, p in named.items() if "norm" not in n]
    classes = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    if kind in classes:
        return [(classes[kind]([{"params": rest}, norms], weight_decay=0.1, foreach=False, **SETTINGS[kind]), 1.0)]
    hidden = [p for n, p in named.items() if is_hidden(n, p)]
    embedding = [p for n, p in named.items() if "norm" not in n and not is_hidden(n, p)]
    muon = torch.optim.Muon(hidden, weight_decay=0.1, momentum=0.9, nesterov=True, ns_steps=4, adjust_lr_fn="original")
    return [
        (muon, 1.0),
        (torch.optim.AdamW([{"params": embedding}, norms], weight_decay=0.1, foreach=False, **ADAM), 0.1),
    ]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", SETTINGS)
def test_scheduled_optimizer_equals_torch_with_lr_set_by_hand(
    tiny: Tiny, set_gradients: SetGradients, kind: str, tied: bool
) -> None:
    model, reference = tiny(tied=tied), tiny(tied=tied)
    applier, references = ours(kind, model), theirs(kind, reference)
    for step in range(1, 13):
        set_gradients(model, step)
        set_gradients(reference, step)
        applier.prepare(step)
        applier.optimizer.step()
        for optimizer, scale in references:
            for group in optimizer.param_groups:
                group["lr"] = SCHEDULE.lr(step) * scale
            optimizer.step()
    for (name, a), b in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("kind", SETTINGS)
def test_fused_is_chosen_by_device_and_agrees(tiny: Tiny, set_gradients: SetGradients, kind: str) -> None:
    models = [tiny(), tiny()]
    appliers = [ours(kind, model, fused=fused) for model, fused in zip(models, (None, False), strict=True)]
    assert any(group.get("fused") for group in appliers[0].optimizer.param_groups)  # CPUs have the kernels
    assert not any(group.get("fused") for group in appliers[1].optimizer.param_groups)
    for step in range(1, 5):
        for model, applier in zip(models, appliers, strict=True):
            set_gradients(model, step)
            applier.prepare(step)
            applier.optimizer.step()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_checkpoint_continues_bit_for_bit(tiny: Tiny, set_gradients: SetGradients, tmp_path: Path, kind: str) -> None:
    def train(model: nn.Module, applier: ScheduleApplier, steps: range) -> None:
        for step in steps:
            set_gradients(model, step)
            applier.prepare(step)
            applier.optimizer.step()
            applier.optimizer.zero_grad()

    model, resumed = tiny(), tiny()
    applier, again = ours(kind, model), ours(kind, resumed)
    train(model, applier, range(1, 6))
    checkpoints = Checkpointer(tmp_path, keep_latest_k=0)
    checkpoints.save(5, model=model, optimizer=applier.optimizer, state={})
    checkpoints.load_newest(model=resumed, optimizer=again.optimizer)
    train(model, applier, range(6, 13))
    train(resumed, again, range(6, 13))
    for (name, a), b in zip(model.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_muon_and_adamw_act_as_one_optimizer(tiny: Tiny, set_gradients: SetGradients) -> None:
    model, copy = tiny(), tiny()
    optimizer, other = ours("muon", model).optimizer, ours("muon", copy).optimizer
    assert isinstance(optimizer, MuonAdamW)
    assert [group["name"] for group in optimizer.param_groups] == ["all.muon", "all.adamw", "*norm*"]
    assert [group["lr_scale"] for group in optimizer.param_groups] == [1.0, 0.1, 0.1]
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    set_gradients(model, 1)
    optimizer.step()
    assert {key for state in optimizer.state.values() for key in state} == {
        "momentum_buffer",
        "exp_avg",
        "exp_avg_sq",
        "step",
    }
    copy.load_state_dict(model.state_dict())
    other.load_state_dict(deepcopy(optimizer.state_dict()))  # torch would share the tensors
    for m, o in ((model, optimizer), (copy, other)):
        set_gradients(m, 2)
        o.step()
        o.zero_grad()
        assert all(p.grad is None for p in m.parameters())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), copy.parameters(), strict=True))


def test_muon_by_type_takes_the_attention_and_feed_forward_groups(tiny: Tiny) -> None:
    groups = build_param_groups(tiny(tied=False).named_parameters(), preset="by_type")
    optimizer = build_muon(groups, fused=None, **MUON)
    hidden = [group["name"] for group in optimizer.param_groups if "ns_steps" in group]
    assert sorted(hidden) == ["attention", "feed_forward"]
    assert sorted(g["name"] for g in optimizer.param_groups if "betas" in g) == ["embeddings", "norms"]


def test_a_model_of_one_kind_gets_one_optimizer() -> None:
    matrices = build_param_groups(nn.Linear(4, 4, bias=False).named_parameters())
    assert isinstance(build_muon(matrices, fused=None, **MUON), torch.optim.Muon)
    vectors = build_param_groups(nn.LayerNorm(4).named_parameters())
    assert isinstance(build_muon(vectors, fused=None, **MUON), torch.optim.AdamW)


@pytest.mark.parametrize("shape", [(24, 24), (40, 16), (16, 40)])
def test_orthogonalize_leaves_the_singular_vectors_and_evens_the_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalize(matrix, coefficients=(3.4445, -4.7750, 2.0315), steps=5, eps=1e-7).float()
    core = u.T @ result @ vt.T
    assert (core - core.diag().diag()).abs().max() < 0.05  # bfloat16
    assert 0.4 < core.diag().min() <= core.diag().max() < 1.5


def test_shape_factors_are_those_of_the_papers() -> None:
    assert shape_factor((400, 100), "original") == shape_factor((400, 100), None) == 2.0
    assert shape_factor((100, 400), "original") == 1.0
    assert shape_factor((100, 400), "match_rms_adamw") == 0.2 * 20


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_shard_shapes_are_those_of_a_dtensor(ranks: int) -> None:
    for rows in (1, 2, 5, 8, 9, 16):
        chunks = torch.empty(rows, 3).chunk(ranks)
        missing = [[0, 3]] * (ranks - len(chunks))
        assert shard_shapes((rows, 3), 0, ranks) == [list(chunk.shape) for chunk in chunks] + missing
        assert shard_shapes((3, rows), 1, ranks) == [shape[::-1] for shape in shard_shapes((rows, 3), 0, ranks)]


@pytest.mark.parametrize("max_norm", [0.0, 0.01, 1e6])
def test_clipping_equals_torch(tiny: Tiny, set_gradients: SetGradients, max_norm: float) -> None:
    model, reference = tiny(), tiny()
    for each in (model, reference):
        set_gradients(each, 1)
    norm = clip_grad_norm(model.parameters(), max_norm)
    expected = nn.utils.clip_grad_norm_(reference.parameters(), max_norm if max_norm > 0 else torch.inf)
    torch.testing.assert_close(norm, expected)
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
