import pytest

from molgen_pretrain.schedules import (
    WSDS,
    Constant,
    Phase,
    ScheduleError,
    differences,
    schedule_from_state,
    schedule_state,
)


def test_constant_warms_up_and_stays() -> None:
    schedule = Constant(lr_max=1.0, warmup_steps=4, warmup_init=0.2)
    assert [schedule.lr(step) for step in (0, 2, 4, 1000)] == pytest.approx([0.2, 0.6, 1.0, 1.0])
    assert (schedule.phase(3), schedule.phase(4)) == (Phase.WARMUP, Phase.STABLE)
    assert Constant(lr_max=0.3).lr(0) == 0.3


def test_constant_refuses_a_warmup_from_above() -> None:
    with pytest.raises(ScheduleError, match="warmup_init=2"):
        Constant(lr_max=1.0, warmup_init=2.0)


@pytest.mark.parametrize(
    "schedule",
    [
        Constant(lr_max=1e-3, warmup_steps=5),
        WSDS(lr_max=1e-3, lr_min=1e-4, total_steps=100, warmup_frac=0.1, checkpoints_frac=(0.5, 1.0)),
        WSDS(lr_max=1e-3, lr_min=1e-4, checkpoints=(10, 20), decay_steps=3, decay_shape="inverse"),
    ],
)
def test_state_brings_the_same_schedule_back(schedule: Constant | WSDS) -> None:
    state = schedule_state(schedule)
    assert schedule_from_state(state) == schedule
    assert differences(state, schedule_state(schedule)) == []


def test_differences_name_field_and_both_values() -> None:
    old = schedule_state(WSDS(lr_max=1e-3, lr_min=1e-4, checkpoints=(10,)))
    new = schedule_state(WSDS(lr_max=2e-3, lr_min=1e-4, checkpoints=(10, 20)))
    assert differences(old, new) == ["checkpoints: [10] -> [10, 20]", "lr_max: 0.001 -> 0.002"]


def test_an_unknown_stored_schedule_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown schedule 'Bogus'"):
        schedule_from_state({"schedule": "Bogus"})
