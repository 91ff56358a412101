import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from molgen_pretrain.schedules import WSDS, Phase, ScheduleError


def test_worked_example_with_decay_frac() -> None:
    # decay_frac 0.1 of the milestone's step: windows of 100, 200, 300 and 400 steps.
    schedule = WSDS(lr_max=2e-4, lr_min=2e-5, warmup_steps=400, checkpoints=(1000, 2000, 3000, 4000), decay_frac=0.1)
    assert schedule.windows == ((900, 1000), (1800, 2000), (2700, 3000), (3600, 4000))
    exact = {0: 0.0, 400: 2e-4, 900: 2e-4, 1000: 2e-5, 1001: 2e-4, 2000: 2e-5, 3600: 2e-4, 4000: 2e-5, 9999: 2e-5}
    assert {step: schedule.lr(step) for step in exact} == exact
    assert schedule.lr(950) == pytest.approx(1.1e-4)


def test_worked_example_with_decay_steps() -> None:
    schedule = WSDS(lr_max=2e-4, lr_min=2e-5, warmup_steps=400, checkpoints=(1250, 2500, 5000, 10000), decay_steps=100)
    assert [window.start for window in schedule.windows] == [1150, 2400, 4900, 9900]
    assert all(schedule.lr(t) == 2e-5 for t in schedule.checkpoints)
    assert all(schedule.lr(t + 1) == 2e-4 for t in schedule.checkpoints[:-1])


def test_decay_frac_of_period() -> None:
    schedule = WSDS(lr_max=1.0, lr_min=0.1, checkpoints=(100, 400), decay_frac=0.1, decay_frac_of="period")
    assert schedule.windows == ((90, 100), (370, 400))


def test_decay_frac_means_what_it_says_in_decimals() -> None:
    # 100 * 0.29 is 28.999999999999996 in binary.
    assert WSDS(lr_max=1.0, lr_min=0.1, checkpoints=(100,), decay_frac=0.29).windows == ((71, 100),)


def test_fractions_scale_with_the_run() -> None:
    schedule = WSDS(lr_max=1.0, lr_min=0.0, total_steps=400, warmup_frac=0.05, checkpoints_frac=(0.5, 1.0))
    assert schedule.warmup_steps == 20
    assert schedule.milestones == (200, 400)
    assert WSDS(lr_max=1.0, lr_min=0.0, total_steps=1, checkpoints_frac=(0.5, 1.0)).milestones == (1,)


def test_without_checkpoints_the_end_is_the_milestone() -> None:
    assert WSDS(lr_max=1.0, lr_min=0.0, total_steps=50).milestones == (50,)


@pytest.mark.parametrize(
    ("shape", "middle"),
    [
        ("linear", 0.55),
        ("cosine", 0.55),
        ("one_minus_sqrt", 0.1 + 0.9 * (1 - math.sqrt(0.5))),
        ("sqrt", 0.1 + 0.9 * (1 - math.sqrt(0.5))),
        ("exponential", 0.1 + 0.9 * (2 * math.sqrt(0.5) - 1)),
        ("inverse", 1 / (0.5 * 1 + 0.5 * 10)),
    ],
)
def test_decay_shapes_at_half_way(shape: str, middle: float) -> None:
    schedule = WSDS(lr_max=1.0, lr_min=0.1, checkpoints=(100,), decay_steps=50, decay_shape=shape)
    assert schedule.lr(75) == pytest.approx(middle)
    assert (schedule.lr(50), schedule.lr(100)) == (1.0, 0.1)


def test_phases() -> None:
    schedule = WSDS(lr_max=1.0, lr_min=0.1, warmup_steps=10, checkpoints=(50, 100), decay_steps=20)
    expected = {1: "warmup", 9: "warmup", 10: "stable", 30: "stable", 31: "decay", 50: "decay", 51: "stable"}
    assert {step: schedule.phase(step).value for step in expected} == expected
    assert schedule.phase(101) is Phase.FINAL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoints": (100, 50)}, "strictly increasing"),
        ({"checkpoints": (50, 50)}, "strictly increasing"),
        ({"checkpoints": (2000,)}, "beyond the run's 1000 steps"),
        ({"warmup_steps": 500, "checkpoints": (400,)}, "must end before the first milestone"),
        ({"lr_min": 2.0}, "lr_min=2.0"),
        ({"lr_max": 0.0, "lr_min": 0.0}, "lr_max=0.0"),
        ({"decay_frac": 0.0}, "decay_frac=0.0"),
        ({"decay_frac": None}, "give decay_frac or decay_steps"),
        ({"decay_steps": 0}, "decay_steps=0"),
        ({"decay_shape": "cubic"}, "decay_shape=cubic"),
        ({"decay_shape": "inverse", "lr_min": 0.0}, "needs lr_min > 0"),
        ({"decay_frac_of": "rest"}, "decay_frac_of=rest"),
        ({"checkpoints_frac": (1.5,)}, "fractions must be in"),
        ({"warmup_frac": 1.0}, "warmup_frac=1.0"),
        ({"start_weight_decay": -1.0}, "start_weight_decay=-1.0"),
    ],
)
def test_what_cannot_be_is_refused(change: dict, message: str) -> None:
    legal = {"lr_max": 1.0, "lr_min": 0.1, "total_steps": 1000, "warmup_steps": 10}
    with pytest.raises(ScheduleError, match=re.escape(message)):
        WSDS(**{**legal, **change})


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(ScheduleError) as caught:
        WSDS(lr_max=1.0, lr_min=2.0, checkpoints=(100, 50), decay_frac=3.0)
    assert len(caught.value.problems) == 3


@st.composite
def wsds(draw: st.DrawFn) -> WSDS:
    checkpoints = tuple(sorted(draw(st.sets(st.integers(2, 3000), min_size=1, max_size=6))))
    lr_max = draw(st.floats(1e-6, 1.0))
    return WSDS(
        lr_max=lr_max,
        lr_min=lr_max * draw(st.floats(1e-6, 1.0)),
        warmup_steps=draw(st.integers(0, checkpoints[0] - 1)),
        checkpoints=checkpoints,
        decay_frac=draw(st.floats(0.001, 1.0)),
        decay_steps=draw(st.none() | st.integers(1, 4000)),
        decay_frac_of=draw(st.sampled_from(["target", "period"])),
        decay_shape=draw(st.sampled_from(["linear", "cosine", "one_minus_sqrt", "exponential", "inverse"])),
    )


@given(wsds())
def test_properties_of_any_wsds(schedule: WSDS) -> None:
    assert all(schedule.lr(t) == schedule.lr_min for t in schedule.checkpoints)
    starts = {window.start for window in schedule.windows}
    for t in schedule.checkpoints[:-1]:
        # A decay that begins at the previous milestone has no stable step before it.
        assert t in starts or schedule.lr(t + 1) == schedule.lr_max
    values = [schedule.lr(step) for step in range(schedule.checkpoints[-1] + 3)]
    assert all(0 <= value <= schedule.lr_max * (1 + 1e-12) for value in values)
    warmup = values[: schedule.warmup_steps + 1]
    assert warmup == sorted(warmup)
    for window in schedule.windows:
        decay = values[window.start + 1 : window.end + 1]
        # 1e-12: rounding may move a neighbour of a boundary by a bit.
        assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(decay))


def test_weight_decay_over_the_run() -> None:
    common = {"lr_max": 1.0, "lr_min": 0.1, "total_steps": 100, "start_weight_decay": 0.0, "end_weight_decay": 0.2}
    linear = WSDS(**common, weight_decay_incr_style="linear")
    cosine = WSDS(**common, weight_decay_incr_style="cosine")
    assert [linear.weight_decay(s) for s in (0, 50, 100, 200)] == [0.0, 0.1, 0.2, 0.2]
    assert cosine.weight_decay(50) == pytest.approx(0.1)
    assert cosine.weight_decay(25) == pytest.approx(0.1 * (1 - math.sqrt(0.5)))
    with pytest.raises(ScheduleError, match="use linear or cosine"):
        WSDS(**common)
