import json

import pytest

from molgen_pretrain.errors import UserError
from molgen_pretrain.schedules import (
    SGDR,
    WSDS,
    Constant,
    Cosine,
    Megatron,
    Phase,
    Schedule,
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
        Cosine(lr_max=1e-3, total_steps=100, warmup_frac=0.1),
        SGDR(lr_max=1e-3, lr_min=0.0, total_steps=100, cycles=3),
        Megatron(lr=1e-3, train_iters=100, lr_warmup_fraction=0.123),
    ],
)
def test_state_brings_the_same_schedule_back(schedule: Schedule) -> None:
    state = json.loads(json.dumps(schedule_state(schedule)))
    assert schedule_from_state(state) == schedule
    assert differences(state, schedule_state(schedule)) == []


def test_differences_name_field_and_both_values() -> None:
    old = schedule_state(WSDS(lr_max=1e-3, lr_min=1e-4, checkpoints=(10,)))
    new = schedule_state(WSDS(lr_max=2e-3, lr_min=1e-4, checkpoints=(10, 20)))
    assert differences(old, new) == ["checkpoints: [10] -> [10, 20]", "lr_max: 0.001 -> 0.002"]


def test_another_class_is_a_difference() -> None:
    old, new = schedule_state(Constant(lr_max=1e-3)), schedule_state(Cosine(lr_max=1e-3, total_steps=9))
    assert "schedule: Constant -> Cosine" in differences(old, new)


def test_switches_of_a_resume_are_not_part_of_the_curve() -> None:
    plain = Megatron(lr=1e-3, train_iters=100)
    override = Megatron(lr=1e-3, train_iters=100, override_opt_param_scheduler=True)
    assert schedule_state(plain) == schedule_state(override)


def test_what_a_later_version_stored_is_an_error_that_names_it() -> None:
    with pytest.raises(UserError, match="unknown schedule 'Bogus'"):
        schedule_from_state({"schedule": "Bogus"})
    state = {**schedule_state(Constant(lr_max=1e-3)), "lr_bend": 1, "a_b": 2}
    with pytest.raises(UserError, match=r"Constant .* does not know: a_b, lr_bend"):
        schedule_from_state(state)


def test_a_state_of_the_first_version_still_loads() -> None:
    state = schedule_state(WSDS(lr_max=1e-3, lr_min=1e-4, checkpoints=(10,)))
    del state["decay_beta2"]
    assert schedule_from_state(state) == WSDS(lr_max=1e-3, lr_min=1e-4, checkpoints=(10,))
    assert differences(state, schedule_state(schedule_from_state(state))) == []
