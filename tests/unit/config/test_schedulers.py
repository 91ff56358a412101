"""Every scheduler choice composes at any length of run; its keys are the schedule's names; its mistakes are told."""

import dataclasses
import json

import pytest

from molgen_pretrain.config.choices import OnResume
from molgen_pretrain.config.compose import compose_run
from molgen_pretrain.config.plain import build_schedule, resume_policy
from molgen_pretrain.config.schema import RunConfig
from molgen_pretrain.config.store import conf_dir
from molgen_pretrain.config.validate import validate
from molgen_pretrain.errors import UserError
from molgen_pretrain.schedules import schedule_from_state, schedule_state

CHOICES = sorted(path.stem for path in (conf_dir() / "scheduler").glob("*.yaml"))


def composed(*overrides: str) -> RunConfig:
    return compose_run(overrides)


def message_of(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        validate(composed(*overrides), 1)
    return str(caught.value)


def test_the_choices() -> None:
    schedules = {"wsds", "wsd", "wsd_adaptive", "sgdr", "cosine", "linear", "inverse_sqrt", "constant", "megatron"}
    assert set(CHOICES) == schedules | {"wsds_pretrain"}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("steps", [1, 2, 10, 400, 1_000_000])
def test_every_choice_at_any_length(choice: str, steps: int) -> None:
    cfg = composed(f"scheduler={choice}", f"training.steps={steps}", "optimizer.lr=0.002")
    validate(cfg, 1)
    schedule = build_schedule(cfg.scheduler)
    spans = schedule.phase_spans(steps)
    assert (spans[0].first, spans[-1].last) == (1, steps)
    assert max(schedule.lr(s) for span in spans for s in (span.first, span.last)) <= 0.002
    assert schedule.weight_decay(1) == cfg.optimizer.weight_decay
    assert all(step <= steps for step in schedule.milestones)
    assert schedule_from_state(json.loads(json.dumps(schedule_state(schedule)))) == schedule


@pytest.mark.parametrize("choice", CHOICES)
def test_the_keys_are_the_schedules_names(choice: str) -> None:
    cfg = composed(f"scheduler={choice}").scheduler
    keys = {field.name for field in dataclasses.fields(cfg)} - {"on_resume"}
    assert keys == {field.name for field in dataclasses.fields(build_schedule(cfg))}


@pytest.mark.parametrize("choice", [c for c in CHOICES if c != "megatron"])
def test_steps_given_by_hand_win_over_the_shipped_fraction(choice: str) -> None:
    schedule = build_schedule(composed(f"scheduler={choice}", "scheduler.warmup_steps=7").scheduler)
    assert (schedule.warmup_steps, schedule.lr(7)) == (7, schedule.lr_max)


def test_commands_that_change_a_plan() -> None:
    first = build_schedule(composed("scheduler=wsd", "scheduler.warmup_steps=20").scheduler)
    assert first.window == (320, 400)
    longer = build_schedule(composed("scheduler=wsd", "scheduler.warmup_steps=20", "training.steps=800").scheduler)
    assert longer.window == (640, 800)
    stable = composed("scheduler=wsd", "training.steps=600", "scheduler.stable_steps=480", "scheduler.warmup_steps=20")
    assert build_schedule(stable.scheduler).window == (500, 620)
    open_ended = build_schedule(composed("scheduler=wsd", "scheduler.decay_frac=null").scheduler)
    assert open_ended.window is None
    now = build_schedule(composed("scheduler=wsd", "training.steps=350", "scheduler.decay_steps=50").scheduler)
    assert now.window == (300, 350)


def test_megatron_spellings_that_are_no_python_names() -> None:
    cfg = composed("scheduler=megatron", "scheduler.lr_decay_style=inverse-square-root").scheduler
    assert build_schedule(cfg).lr_decay_style == "inverse-square-root"
    cfg = composed(
        "scheduler=megatron", "scheduler.lr_decay_style=WSD", "scheduler.lr_wsd_decay_iters=40",
        "scheduler.lr_wsd_decay_style=minus_sqrt", "scheduler.weight_decay_incr_style=cosine",
        "scheduler.end_weight_decay=0.3",
    ).scheduler  # fmt: skip
    schedule = build_schedule(cfg)
    assert schedule.computed["wsd_decay_steps"] == 40
    assert schedule.weight_decay(400) == 0.3


@pytest.mark.parametrize(
    ("overrides", "policy"),
    [
        ([], OnResume.strict),
        (["scheduler.override_opt_param_scheduler=true"], OnResume.override),
        (["scheduler.override_opt_param_scheduler=true", "scheduler.on_resume=override"], OnResume.override),
        (["scheduler.use_checkpoint_opt_param_scheduler=true"], OnResume.use_checkpoint),
        (["scheduler.on_resume=override"], OnResume.override),
    ],
)
def test_megatron_switches_are_a_resume_policy(overrides: list[str], policy: OnResume) -> None:
    assert resume_policy(composed("scheduler=megatron", *overrides).scheduler) is policy


def test_resume_policy_of_the_others() -> None:
    assert resume_policy(composed("scheduler.on_resume=use_checkpoint").scheduler) is OnResume.use_checkpoint


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["scheduler=wsd", "scheduler.decay_steps=390"], "scheduler.decay_steps=390: the run of 400 steps has no room"),
        (["scheduler=cosine", "scheduler.min_lr=1"], "scheduler.min_lr=1.0: must be between 0 and lr_max=0.003"),
        (["scheduler=sgdr", "scheduler.cycle_mult=0.5"], "scheduler.cycle_mult=0.5: must be a number of at least 1"),
        (["scheduler=megatron", "scheduler.lr_decay_style=WSD"], "scheduler.lr_wsd_decay_iters=None"),
        (
            ["scheduler=megatron", "scheduler.override_opt_param_scheduler=true", "scheduler.on_resume=use_checkpoint"],
            "scheduler.override_opt_param_scheduler=true: contradicts scheduler.on_resume=use_checkpoint",
        ),
        (["scheduler=wsd_adaptive", "scheduler.window=1"], "scheduler.window=1: must be at least 2"),
        (["scheduler.decay_beta2=1.5"], "scheduler.decay_beta2=1.5: must be in [0, 1)"),
    ],
)
def test_mistakes(overrides: list[str], expected: str) -> None:
    assert expected in message_of(*overrides)
