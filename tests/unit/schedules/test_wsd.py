import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from molgen_pretrain.schedules import WSD, Phase, ScheduleError

PLAN = WSD(lr_max=1.0, lr_min=0.1, warmup_steps=10, stable_steps=50, decay_steps=20)


def test_boundaries() -> None:
    exact = {0: 0.1, 10: 1.0, 60: 1.0, 80: 0.1, 500: 0.1}
    assert {step: PLAN.lr(step) for step in exact} == exact
    assert PLAN.lr(70) == pytest.approx(0.55)
    assert PLAN.milestones == (80,)
    assert PLAN.decay_windows(1000) == ((60, 80),)


def test_the_warmup_starts_where_it_is_told_to() -> None:
    assert dataclasses.replace(PLAN, warmup_init=0.0).lr(5) == pytest.approx(0.5)


def test_open_ended_until_a_decay_begins() -> None:
    open_ended = WSD(lr_max=1.0, lr_min=0.1, warmup_steps=10)
    assert open_ended.lr(10**12) == 1.0
    assert (open_ended.phase(10**12), open_ended.phase_progress(10**12)) == (Phase.STABLE, 0.0)
    assert open_ended.milestones == ()
    assert open_ended.extend_stable(100) == open_ended
    decaying = open_ended.begin_decay(1000, 200)
    assert [decaying.lr(s) for s in (999, 1000, 1200)] == [1.0, 1.0, 0.1]
    assert decaying.milestones == (1200,)


def test_without_stable_steps_the_decay_ends_with_the_run() -> None:
    schedule = WSD(lr_max=1.0, lr_min=0.1, total_steps=400, warmup_frac=0.05, decay_frac=0.2)
    assert schedule.window == (320, 400)
    assert schedule.milestones == (400,)
    assert WSD(lr_max=1.0, lr_min=0.1, total_steps=400, decay_frac=0.2, decay_steps=10).window == (390, 400)
    assert WSD(lr_max=1.0, lr_min=0.1, total_steps=2, warmup_frac=0.05, decay_frac=0.2).window == (1, 2)


def test_a_decay_that_the_run_does_not_reach_is_no_milestone() -> None:
    trunk = dataclasses.replace(PLAN, total_steps=70)
    assert trunk.milestones == ()


def test_extending_keeps_what_has_run() -> None:
    extended = PLAN.extend_stable(30)
    assert extended.window == (90, 110)
    assert [extended.lr(s) for s in range(61)] == [PLAN.lr(s) for s in range(61)]


def test_extending_a_run_with_an_end_moves_the_end() -> None:
    schedule = WSD(lr_max=1.0, lr_min=0.1, total_steps=400, warmup_frac=0.05, decay_frac=0.2)
    extended = schedule.extend_stable(400)
    assert (extended.total_steps, extended.window, extended.warmup_steps) == (800, (720, 800), 20)


def test_beginning_the_decay_early_and_late() -> None:
    schedule = dataclasses.replace(PLAN, total_steps=80)
    assert schedule.begin_decay(30).window == (30, 50)
    late = schedule.begin_decay(75, 40)
    assert (late.window, late.total_steps) == ((75, 115), 115)


@pytest.mark.parametrize(
    ("schedule", "at", "steps", "message"),
    [
        (PLAN, 9, 5, "at=9: a decay starts after the warmup of 10"),
        (PLAN, 20, 0, "decay_steps=0"),
        (WSD(lr_max=1.0, lr_min=0.1), 20, None, "no decay was planned"),
    ],
)
def test_a_decay_that_cannot_begin(schedule: WSD, at: int, steps: int | None, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        schedule.begin_decay(at, steps)


def test_stable_steps_cannot_become_negative() -> None:
    with pytest.raises(ScheduleError, match="stable_steps=-1"):
        PLAN.extend_stable(-51)


@given(st.integers(1, 40), st.sampled_from(["linear", "cosine", "one_minus_sqrt", "exponential", "inverse"]))
def test_blending_is_the_mean_of_stable_and_decay(blend_steps: int, shape: str) -> None:
    plain = dataclasses.replace(PLAN, decay_steps=40, decay_shape=shape)
    blended = dataclasses.replace(plain, blend_steps=blend_steps)
    for step in range(120):
        b = min(1.0, max(0.0, (step - 60) / blend_steps)) if step >= 60 else 0.0
        expected = plain.lr(step) if step < 60 else 1.0 * (1 - b) + plain.lr(step) * b
        assert blended.lr(step) == pytest.approx(expected, rel=1e-12)
    assert (blended.lr(60), blended.lr(100)) == (1.0, 0.1)


def test_sqrt_is_another_name() -> None:
    assert dataclasses.replace(PLAN, decay_shape="sqrt") == dataclasses.replace(PLAN, decay_shape="one_minus_sqrt")


def test_one_minus_sqrt_falls_fastest_at_the_start() -> None:
    schedule = WSD(lr_max=1.0, lr_min=0.0, stable_steps=0, decay_steps=100, decay_shape="one_minus_sqrt")
    assert schedule.lr(1) == pytest.approx(0.9)
    assert schedule.lr(25) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stable_steps": -1}, "stable_steps=-1"),
        ({"decay_steps": None}, "stable_steps=50: a decay follows"),
        ({"decay_steps": 0}, "decay_steps=0: must be at least 1"),
        ({"decay_frac": 0.2}, "decay_frac=0.2: needs total_steps"),
        ({"decay_frac": 1.5, "total_steps": 10}, "decay_frac=1.5"),
        ({"blend_steps": 21}, "blend_steps=21"),
        ({"blend_steps": -1}, "blend_steps=-1"),
        ({"decay_shape": "inverse", "lr_min": 0.0}, "lr_min=0.0: decay_shape=inverse needs lr_min > 0"),
        ({"decay_shape": "bent"}, "decay_shape=bent"),
        ({"warmup_init": 2.0}, "warmup_init=2.0"),
        ({"stable_steps": None, "total_steps": 25}, "at most 15"),
    ],
)
def test_what_cannot_be_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ScheduleError, match=re.escape(message)):
        dataclasses.replace(PLAN, **change)
