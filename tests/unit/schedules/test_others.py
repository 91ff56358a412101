"""Cosine, linear, inverse square root, SGDR and Megatron: what no curve of another project shows."""

import re
import time
from typing import Any

import pytest

from molgen_pretrain.schedules import (
    SGDR,
    WSD,
    WSDS,
    Constant,
    Cosine,
    InverseSqrt,
    Linear,
    Megatron,
    Phase,
    Schedule,
    ScheduleError,
    decay_crossings,
)


@pytest.mark.parametrize("cls", [Cosine, Linear])
def test_anneals_end_with_the_run_and_hold(cls: type) -> None:
    schedule = cls(lr_max=1.0, min_lr=0.1, total_steps=100, warmup_frac=0.1)
    exact = {0: 0.0, 10: 1.0, 100: 0.1, 101: 0.1, 10**6: 0.1}
    assert {step: schedule.lr(step) for step in exact} == exact
    assert schedule.lr(55) == pytest.approx(0.55)
    assert (schedule.phase(10), schedule.phase(100), schedule.phase(101)) == (Phase.DECAY, Phase.DECAY, Phase.FINAL)
    assert schedule.milestones == (100,)


def test_a_decay_that_ends_before_the_run() -> None:
    schedule = Linear(lr_max=1.0, min_lr=0.2, total_steps=100, decay_steps=60)
    assert (schedule.lr(60), schedule.lr(90), schedule.milestones) == (0.2, 0.2, (60,))
    assert Linear(lr_max=1.0, total_steps=100, decay_steps=160).milestones == ()


@pytest.mark.parametrize("cls", [Cosine, Linear, InverseSqrt])
def test_lr_min_is_another_spelling(cls: type) -> None:
    schedule = cls(lr_max=1.0, lr_min=0.1, total_steps=100)
    assert schedule == cls(lr_max=1.0, min_lr=0.1, total_steps=100)
    assert schedule.lr_min == schedule.min_lr == 0.1
    with pytest.raises(ScheduleError, match=r"lr_min=0.1: another spelling of min_lr=0.2"):
        cls(lr_max=1.0, lr_min=0.1, min_lr=0.2, total_steps=100)


def test_inverse_sqrt() -> None:
    schedule = InverseSqrt(lr_max=1.0, min_lr=0.3, warmup_steps=100, total_steps=10_000)
    assert schedule.lr(100) == 1.0
    assert schedule.lr(400) == pytest.approx(0.5)
    assert schedule.lr(9000) == 0.3
    assert InverseSqrt(lr_max=1.0, total_steps=50).lr(4) == pytest.approx(0.5)
    assert InverseSqrt(lr_max=1.0, warmup_steps=100, total_steps=1000).lr(1001) == 0.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cosine(lr_max=1.0), "give decay_steps or total_steps"),
        (lambda: Cosine(lr_max=1.0, total_steps=10, warmup_steps=10), "must end before the decay does, at step 10"),
        (lambda: Linear(lr_max=1.0, total_steps=10, min_lr=2.0), "min_lr=2.0: must be between 0 and lr_max=1.0"),
        (lambda: Linear(lr_max=1.0, decay_steps=0), "decay_steps=0"),
        (lambda: InverseSqrt(lr_max=1.0, timescale=0), "timescale=0"),
        (lambda: SGDR(lr_max=1.0, lr_min=0.1), "give cycle_length, or cycles"),
        (lambda: SGDR(lr_max=1.0, lr_min=0.1, cycles=3), "cycles=3: needs total_steps"),
        (lambda: SGDR(lr_max=1.0, lr_min=0.1, cycles=0, total_steps=9), "cycles=0: must be between 1 and 1000"),
        (lambda: SGDR(lr_max=1.0, lr_min=0.1, cycle_length=0), "cycle_length=0"),
        (lambda: SGDR(lr_max=1.0, lr_min=0.1, cycle_length=9, cycle_mult=0.5), "cycle_mult=0.5"),
        (lambda: SGDR(lr_max=1.0, lr_min=0.1, cycle_length=9, cycle_mult=float("nan")), "cycle_mult=nan"),
        (lambda: Megatron(lr=1.0), "give lr_decay_iters or train_iters"),
        (lambda: Megatron(lr=1.0, train_iters=9, lr_decay_style="poly"), "inverse-square-root, WSD"),
        (lambda: Megatron(lr=1.0, train_iters=9, lr_decay_style="WSD"), "lr_wsd_decay_iters=None"),
        (lambda: Megatron(lr=1.0, train_iters=9, lr_warmup_fraction=1.0), "lr_warmup_fraction=1.0"),
        (lambda: Megatron(lr=1.0, train_iters=9, lr_warmup_init=2.0), "lr_warmup_init=2.0"),
        (
            lambda: Megatron(
                lr=1.0, train_iters=9, override_opt_param_scheduler=True, use_checkpoint_opt_param_scheduler=True
            ),
            "contradicts use_checkpoint_opt_param_scheduler=True",
        ),
        (lambda: Constant(lr_max=1.0, decay_beta2=1.0), "decay_beta2=1.0"),
        (lambda: Constant(lr_max=1.0, start_weight_decay=float("nan")), "start_weight_decay=nan"),
        (lambda: Constant(lr_max=1.0, warmup_frac=float("nan"), total_steps=9), "warmup_frac=nan"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ScheduleError, match=re.escape(message)):
        make()


def test_every_problem_of_a_megatron_plan_at_once() -> None:
    with pytest.raises(ScheduleError) as caught:
        Megatron(lr=1.0, min_lr=2.0, train_iters=9, lr_decay_style="x", lr_warmup_iters=20)
    assert [problem.partition("=")[0] for problem in caught.value.problems] == [
        "min_lr",
        "lr_decay_style",
        "lr_warmup_iters",
    ]


def test_steps_win_over_fractions() -> None:
    assert Constant(lr_max=1.0, total_steps=400, warmup_frac=0.05).warmup_steps == 20
    assert Constant(lr_max=1.0, total_steps=400, warmup_frac=0.05, warmup_steps=7).warmup_steps == 7
    assert SGDR(lr_max=1.0, lr_min=0.1, total_steps=400, cycles=3, cycle_length=9).first_length == 9


def test_cycles_fill_the_run() -> None:
    schedule = SGDR(lr_max=1.0, lr_min=0.0, total_steps=400, warmup_steps=20, cycles=3, cycle_mult=2)
    assert schedule.first_length == 55  # 55 + 110 + 220 = 385 of the 381 steps from 20 to 400
    assert schedule.milestones == (74, 184, 400)
    assert schedule.lr(400) < 0.002
    assert [schedule.lr(s) for s in (20, 75, 185)] == [1.0, 1.0, 1.0]


def test_a_cycle_that_the_run_cuts_is_no_milestone() -> None:
    schedule = SGDR(lr_max=1.0, lr_min=0.0, total_steps=25, cycle_length=10)
    assert schedule.milestones == (9, 19)


def test_far_steps_are_not_counted_cycle_by_cycle() -> None:
    began = time.perf_counter()
    for mult in (1.0, 1.0 + 1e-9, 1.0 + 1e-7, 1.5):
        schedule = SGDR(lr_max=1.0, lr_min=0.1, cycle_length=10, cycle_mult=mult)
        assert 0.1 <= schedule.lr(10**9 + 5) <= 1.0
    exact = SGDR(lr_max=1.0, lr_min=0.1, cycle_length=10)
    assert exact.cycle_info(10**15 + 3) == (10**14, 3, 10)
    million = Cosine(lr_max=1.0, total_steps=10**12, warmup_frac=0.01)
    assert len(million.phase_spans(10**12)) == 2
    assert time.perf_counter() - began < 1.0


def test_beta2_changes_with_the_decay_and_stays() -> None:
    schedule = WSDS(lr_max=1.0, lr_min=0.1, warmup_steps=5, checkpoints=(20, 40), decay_steps=10, decay_beta2=0.99)
    steps = (1, 10, 11, 20, 21, 40, 41)
    assert [schedule.beta2(s) for s in steps] == [None, None, 0.99, 0.99, None, 0.99, 0.99]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # Straight lines of 10 % a step; 0.5 is reached by the first decay only, 0.05 by none.
        (WSDS(lr_max=1.0, lr_min=0.1, checkpoints=(20, 40), decay_steps=9), {16: 0.5}),
        (WSD(lr_max=1.0, lr_min=0.1, warmup_steps=8, stable_steps=2, decay_steps=9), {15: 0.5}),
        (Constant(lr_max=1.0, warmup_steps=10), {}),
        (SGDR(lr_max=1.0, lr_min=0.1, warmup_steps=4, cycle_length=10), {10: 0.5}),
    ],
)
def test_crossings(schedule: Schedule, expected: dict[int, float]) -> None:
    assert decay_crossings(schedule, [0.5, 0.05], 100) == expected


def test_two_thresholds_in_one_step() -> None:
    schedule = WSD(lr_max=1.0, lr_min=0.1, stable_steps=10, decay_steps=1)
    assert decay_crossings(schedule, [0.9, 0.5, 1.0], 100) == {11: 0.5}
    assert decay_crossings(schedule, [0.9], 10) == {}


def test_megatron_names_of_what_it_computes() -> None:
    schedule = Megatron(lr=1e-3, train_iters=1000, lr_decay_style="WSD", lr_warmup_fraction=0.01, lr_wsd_decay_iters=50)
    assert schedule.computed == {
        "lr_warmup_steps": 10.0,
        "lr_decay_steps": 1000,
        "wd_incr_steps": 1000,
        "wsd_decay_steps": 50,
    }
    assert all(f"{name} {value}" in schedule.describe() for name, value in schedule.computed.items())
    assert schedule.milestones == (1000,)
    assert schedule.decay_windows(1000) == ((950, 1000),)
