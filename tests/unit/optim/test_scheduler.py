"""Learning rate, weight decay and beta2 of every group are the schedule's, at every step."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from molgen_pretrain.errors import UserError
from molgen_pretrain.optim.optimizer import build_optimizer
from molgen_pretrain.optim.param_groups import GroupRule, build_param_groups
from molgen_pretrain.optim.scheduler import ScheduleApplier
from molgen_pretrain.schedules import SGDR, WSDS, Constant

Tiny = Callable[..., nn.Module]

SCHEDULE = WSDS(
    lr_max=1e-2, lr_min=1e-3, warmup_steps=3, checkpoints=(10,), decay_frac=0.3, total_steps=12,
    start_weight_decay=0.1, end_weight_decay=0.2, weight_decay_incr_style="linear",
)  # fmt: skip
RULES = [GroupRule("*norm*", "norms", lr_scale=0.5, wd_scale=0.0), GroupRule("*embed*", "embeddings", wd_scale=2.0)]


TWO_DECAYS = replace(SCHEDULE, checkpoints=(6, 12), decay_beta2=0.99)


def applier(model: nn.Module, schedule: WSDS = SCHEDULE) -> ScheduleApplier:
    groups = build_param_groups(model.named_parameters(), rules=RULES)
    return ScheduleApplier(build_optimizer("adamw", groups, betas=(0.9, 0.95), eps=1e-8, fused=None), schedule)


def test_every_group_has_the_schedule_times_its_scales(tiny: Tiny) -> None:
    ours = applier(tiny())
    for step in range(1, 14):
        ours.prepare(step)
        lr, wd = SCHEDULE.lr(step), SCHEDULE.weight_decay(step)
        expected = {"norms": (lr * 0.5, 0.0), "embeddings": (lr, wd * 2), "all": (lr, wd)}
        assert ours.group_values(step) == expected
        assert {g["name"]: (g["lr"], g["weight_decay"]) for g in ours.optimizer.param_groups} == expected


def test_beta2_rises_during_the_decay_and_comes_back(tiny: Tiny) -> None:
    ours = applier(tiny(), TWO_DECAYS)
    seen = {}
    for step in range(1, 13):
        ours.prepare(step)
        seen[step] = {group["betas"] for group in ours.optimizer.param_groups}
    assert seen[6] == seen[12] == {(0.9, 0.99)}
    assert seen[4] == seen[7] == {(0.9, 0.95)}


def test_a_resume_inside_the_decay_does_not_keep_its_beta2(tiny: Tiny) -> None:
    first, again = applier(tiny(), TWO_DECAYS), applier(tiny(), TWO_DECAYS)
    first.prepare(6)
    again.optimizer.load_state_dict(first.optimizer.state_dict())
    again.prepare(7)
    assert {group["betas"] for group in again.optimizer.param_groups} == {(0.9, 0.95)}


def test_a_new_schedule_takes_over_at_once(tiny: Tiny) -> None:
    ours = applier(tiny())
    ours.schedule = Constant(lr_max=0.5)
    ours.prepare(2)
    assert {g["name"]: g["lr"] for g in ours.optimizer.param_groups} == {"embeddings": 0.5, "all": 0.5, "norms": 0.25}


def test_the_log_names_every_group_with_its_numbers(tiny: Tiny) -> None:
    model = tiny()
    lines = {line.partition(":")[0]: line for line in applier(model).describe_groups()}
    assert set(lines) == {"norms", "embeddings", "all"}
    assert "592 parameters, lr 0.003333 at step 1, 0.01 at step 3" in lines["embeddings"]
    assert "weight decay 0.216667 at step 1, 0.25 at step 3" in lines["embeddings"]
    assert "lr 0.001667 at step 1, 0.005 at step 3; weight decay 0" in lines["norms"]
    counted = sum(int(line.split()[1 + (":" not in line.split()[0])].replace(",", "")) for line in lines.values())
    assert counted == sum(p.numel() for p in model.parameters())


def test_a_schedule_without_warmup_or_end_is_described(tiny: Tiny) -> None:
    model = tiny()
    optimizer = build_optimizer(
        "sgd", build_param_groups(model.named_parameters()), momentum=0.0, nesterov=False, fused=None
    )
    (line,) = ScheduleApplier(optimizer, Constant(lr_max=0.5)).describe_groups()
    assert "lr 0.5 at step 1; weight decay 0" in line
    assert isinstance(optimizer, torch.optim.SGD)


def muon(model: nn.Module, rules: list[GroupRule], **changes: float) -> ScheduleApplier:
    settings = {"momentum": 0.95, "ns_steps": 5, "adamw_lr_scale": 1.0, "eps": 1e-8, **changes}
    groups = build_param_groups(model.named_parameters(), rules=rules)
    optimizer = build_optimizer(
        "muon", groups, fused=None, nesterov=True, adjust_lr="original", betas=(0.9, 0.95), **settings
    )
    return ScheduleApplier(optimizer, TWO_DECAYS)


def test_settings_of_an_earlier_run_take_over(tiny: Tiny) -> None:
    earlier = muon(tiny(), RULES, momentum=0.9, ns_steps=4)
    earlier.prepare(6)  # a decay's beta2 is not the optimizer's own
    stored = json.loads(json.dumps(earlier.group_settings()))
    assert stored == earlier.group_settings()
    assert stored["norms"] == {"parameters": 112, "lr_scale": 0.5, "wd_scale": 0.0, "eps": 1e-8, "betas": [0.9, 0.95]}
    ours = muon(tiny(), [replace(rule, lr_scale=3.0) for rule in RULES])
    ours.adopt_group_settings(stored)
    assert ours.group_settings() == stored
    for step in (5, 6, 7):
        for applier in (ours, earlier):
            applier.prepare(step)
        assert [{**g, "params": 0} for g in ours.optimizer.param_groups] == [
            {**g, "params": 0} for g in earlier.optimizer.param_groups
        ]


def test_settings_of_other_groups_are_refused(tiny: Tiny) -> None:
    stored = muon(tiny(), RULES).group_settings()
    with pytest.raises(UserError, match=r"use_checkpoint.*norms \(112 parameters\).*here they are.*on_resume=override"):
        muon(tiny(), RULES[1:]).adopt_group_settings(stored)


def test_the_log_shows_the_peak_after_the_first_warmup(tiny: Tiny) -> None:
    model = tiny()
    optimizer = build_optimizer(
        "adamw", build_param_groups(model.named_parameters()), betas=(0.9, 0.95), eps=1e-8, fused=None
    )
    schedule = SGDR(lr_max=1.0, lr_min=0.1, warmup_steps=4, cycle_length=7)
    assert "1 at step 4;" in ScheduleApplier(optimizer, schedule).describe_groups()[0]
