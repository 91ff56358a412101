import math
import re

import pytest

from molgen_pretrain.schedules import (
    WSD,
    ScheduleError,
    WSDAdaptive,
    carry_decisions,
    differences,
    schedule_from_state,
    schedule_state,
)
from molgen_pretrain.schedules.wsd_adaptive import relative_improvement

PLAN = WSDAdaptive(
    lr_max=1.0, lr_min=0.1, total_steps=1000, warmup_steps=20, decay_steps=100, window=10, threshold=0.01,
    min_stable_steps=50,
)  # fmt: skip
FALLING = [2.0 * 0.99**i for i in range(30)]
FLAT = [2.0 - 1e-4 * i for i in range(30)]


def test_a_flat_loss_decides() -> None:
    assert PLAN.decides(FLAT, 300)
    assert not PLAN.decides(FALLING, 300)


def test_a_rising_loss_decides() -> None:
    assert PLAN.decides(FLAT[::-1], 300)


def test_only_the_window_counts() -> None:
    assert PLAN.decides(FALLING + FLAT[:10], 300)
    assert not PLAN.decides(FLAT + FALLING[:10], 300)


def test_not_before_the_window_is_full_nor_before_min_stable_steps() -> None:
    assert not PLAN.decides(FLAT[:9], 300)
    assert not PLAN.decides(FLAT, 69)
    assert PLAN.decides(FLAT, 70)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_decides_nothing(bad: float) -> None:
    assert not PLAN.decides([*FLAT[:9], bad], 300)
    assert not PLAN.decides([bad, -bad, *FLAT[:8]], 300)


def test_at_the_latest_so_that_the_decay_ends_with_the_run() -> None:
    assert PLAN.latest_start == 900
    assert not PLAN.decides(FALLING, 899)
    assert PLAN.decides([], 900)
    assert PLAN.with_decay_start(905).decay_start == 900
    assert [PLAN.lr(s) for s in (900, 1000)] == [1.0, 0.1]


def test_the_decision_changes_nothing_that_has_run_and_is_made_once() -> None:
    decided = PLAN.with_decay_start(300)
    assert [decided.lr(s) for s in range(301)] == [PLAN.lr(s) for s in range(301)]
    assert not decided.decides(FLAT, 400)
    same = WSD(lr_max=1.0, lr_min=0.1, warmup_steps=20, stable_steps=280, decay_steps=100)
    assert [decided.lr(s) for s in range(1200)] == [same.lr(s) for s in range(1200)]
    assert (decided.milestones, PLAN.milestones) == ((400,), (1000,))


def test_a_stored_decision_is_no_difference_and_is_carried_over() -> None:
    decided = PLAN.with_decay_start(300)
    stored = schedule_state(decided)
    assert differences(stored, schedule_state(PLAN)) == []
    assert carry_decisions(stored, PLAN) == decided
    assert schedule_from_state(stored) == decided
    assert carry_decisions(schedule_state(PLAN), PLAN) == PLAN


def test_a_decision_of_the_config_is_a_setting() -> None:
    forced = PLAN.with_decay_start(500)
    stored = schedule_state(PLAN.with_decay_start(300))
    assert differences(stored, schedule_state(forced)) == ["decay_start: 300 -> 500"]
    assert differences(schedule_state(PLAN), schedule_state(forced)) == ["decay_start: None -> 500"]
    assert carry_decisions(stored, forced) == forced


def test_a_decision_of_another_class_of_schedule_is_not_taken() -> None:
    plan = WSD(lr_max=1.0, lr_min=0.1, total_steps=100, decay_steps=10)
    assert carry_decisions(schedule_state(PLAN.with_decay_start(300)), plan) == plan
    assert carry_decisions(schedule_state(plan), PLAN) == PLAN


def test_relative_improvement() -> None:
    assert relative_improvement([2.0, 2.0, 1.0, 1.0]) == pytest.approx(0.5)
    assert relative_improvement([2.0, 99.0, 1.0]) == pytest.approx(0.5)
    assert relative_improvement([-1.0, -2.0]) == pytest.approx(1.0)
    assert relative_improvement([0.0, 1.0]) is None
    assert relative_improvement([1.0]) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"total_steps": None}, "total_steps=None"),
        ({"decay_steps": None}, "give decay_frac or decay_steps"),
        ({"window": 1}, "window=1"),
        ({"threshold": math.nan}, "threshold=nan"),
        ({"min_stable_steps": -1}, "min_stable_steps=-1"),
        ({"decay_steps": 990}, "decay_steps=990: the run of 1000 steps has no room"),
        ({"decay_start": 10}, "decay_start=10: must be between"),
        ({"decay_start": 901}, "the latest start, step 900"),
    ],
)
def test_what_cannot_be_is_refused(change: dict, message: str) -> None:
    values = {**schedule_state(PLAN), **change}
    del values["schedule"]
    with pytest.raises(ScheduleError, match=re.escape(message)):
        WSDAdaptive(**values)
