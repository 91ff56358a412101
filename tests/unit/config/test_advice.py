"""The warnings of a run: named, with the number, and silent where all is well."""

import re

import pytest

from molgen_pretrain.config.advice import advise, notes, usual_peak_lr
from molgen_pretrain.config.compose import compose_run
from molgen_pretrain.config.plain import build_schedule
from molgen_pretrain.model.parameters import count

FOUR = ("training.steps=4000", "scheduler.warmup_frac=0.02", "scheduler.checkpoints=[1000,2000,3000,4000]")
GOOD = (*FOUR, "scheduler.decay_frac=0.1", "scheduler.decay_frac_of=period")


def of(function, *overrides: str) -> list[str]:
    cfg = compose_run(overrides)
    return function(cfg, build_schedule(cfg.scheduler))


def only(*overrides: str) -> str:
    """The one warning that these overrides add to a good plan."""
    found = of(advise, *GOOD, *overrides)
    assert len(found) == 1, found
    return found[0]


def test_a_good_plan_is_not_commented() -> None:
    assert of(advise, *GOOD) == []
    assert of(notes, *GOOD) == []


def test_decays_counted_from_step_zero_take_a_quarter_of_the_run() -> None:
    warning = only("scheduler.decay_frac_of=target")
    assert "1,000 = 100 + 200 + 300 + 400 of 4,000 steps (25.0%)" in warning
    assert "scheduler.decay_frac_of=period makes it 400 steps (10.0%)" in warning


def test_five_milestones_take_thirty_percent() -> None:
    steps = ["training.steps=5000", "scheduler.checkpoints=[1000,2000,3000,4000,5000]"]
    assert "(30.0%)" in only("scheduler.decay_frac_of=target", *steps)


def test_a_fixed_length_is_not_told_to_change_the_fraction() -> None:
    warning = only("scheduler.decay_steps=300")
    assert "1,200 = 300 + 300 + 300 + 300 of 4,000 steps (30.0%)" in warning
    assert "decay_frac_of" not in warning


def test_milestones_beside_the_interval_are_noted() -> None:
    (note,) = of(notes, *GOOD, "checkpoint.interval=2000")
    assert "checkpoint.interval=2000: misses 2 of 4 milestones (1000, 3000), 50% of the decayed models" in note
    assert of(advise, *GOOD, "checkpoint.interval=2000") == []  # they are saved here


def test_milestones_that_nothing_saves() -> None:
    warning = only("checkpoint.enable=false", "checkpoint.hf_export=never")
    assert "checkpoint.enable=false: 4 of 4 milestones (1000, 2000, 3000, 4000) are never saved" in warning
    # The last step is still exported to Hugging Face's format.
    assert "3 of 4 milestones (1000, 2000, 3000)" in only("checkpoint.enable=false")


def test_snapshots_that_never_come() -> None:
    assert of(advise, *GOOD, "checkpoint.at_lr=[1e-3,2e-3]") == []
    assert "comes down through 1e-05, 0.01, so nothing is kept there" in only("checkpoint.at_lr=[1e-3,1e-5,1e-2]")


def test_a_run_that_ends_inside_a_decay() -> None:
    run = ["training.steps=4000", "scheduler.warmup_frac=0.02", "scheduler=wsd", "scheduler.decay_shape=linear"]
    assert of(advise, *run) == []
    (warning,) = of(advise, *run, "scheduler.stable_steps=3520", "scheduler.decay_steps=800")
    assert "training.steps=4000: the run ends 50% into a decay, at lr 0.00155" in warning


@pytest.mark.parametrize("choice", ["constant", "cosine", "inverse_sqrt", "linear", "sgdr", "wsd", "wsds", "megatron"])
def test_the_shipped_schedules_are_not_commented(choice: str) -> None:
    assert of(advise, f"scheduler={choice}") == []


def test_an_adaptive_plan_says_what_is_open() -> None:
    (note,) = of(notes, "scheduler=wsd_adaptive", "training.steps=4000", "scheduler.min_stable_steps=500")
    assert "from step 700 on; shown is the latest start, step 3,200" in note
    decided = [
        "scheduler=wsd_adaptive",
        "scheduler.decay_start=200",
        "scheduler.decay_frac=0.1",
        "scheduler.warmup_steps=10",
    ]
    assert not any("loss" in note for note in of(notes, *decided))
    assert of(advise, *decided) == []  # the run ends with the decay, so nothing comes after it


def test_a_window_that_the_milestone_before_it_cuts() -> None:
    steps = ["scheduler.checkpoints=[3900,4000]", "scheduler.decay_frac_of=target", "scheduler.decay_frac=0.05"]
    (warning,) = of(advise, *GOOD, *steps)
    assert "the decay to milestone 4000 should take 200 steps and has 100: it overlaps milestone 3900" in warning


def test_a_window_that_the_warmup_cuts() -> None:
    assert of(advise, *GOOD, "scheduler.checkpoints=[100,4000]") == []
    (warning,) = of(advise, *GOOD, "scheduler.checkpoints=[100,4000]", "scheduler.decay_steps=50")
    assert "the decay to milestone 100 should take 50 steps and has 20: it overlaps the warmup" in warning


@pytest.mark.parametrize(
    ("warmup", "shown"),
    [
        (400, "a warmup of 400 steps is 10.00%"),
        (0, "a warmup of 0 steps is 0.00%"),
        (7, "a warmup of 7 steps is 0.18%"),
    ],
)
def test_warmup(warmup: int, shown: str) -> None:
    warning = only("scheduler.warmup_frac=null", f"scheduler.warmup_steps={warmup}")
    assert f"{shown} of the run's 4,000" in warning
    assert "here 8 to 200 steps" in warning


@pytest.mark.parametrize("warmup", [8, 200])
def test_the_ends_of_the_usual_warmup_are_usual(warmup: int) -> None:
    assert of(advise, *GOOD, "scheduler.warmup_frac=null", f"scheduler.warmup_steps={warmup}") == []


def test_steps_after_the_last_decay() -> None:
    warning = only("training.steps=16000", "scheduler.warmup_steps=80", "scheduler.warmup_frac=null")
    assert "training.steps=16000: the last 12,000 steps (75.0%) come after the decay, at lr 0.0001" in warning


@pytest.mark.parametrize(("lr", "side"), [(0.1, "above"), (3e-4, "below")])
def test_peak_lr_far_from_the_rule(lr: float, side: str) -> None:
    warning = only(f"optimizer.lr={lr}")
    factor = re.search(rf"([\d.]+) times {side} what the 1/sqrt\(model size\) rule gives", warning)
    assert factor
    usual = usual_peak_lr(count(compose_run(()).model).total)
    assert float(factor[1]) == pytest.approx(max(lr / usual, usual / lr), rel=0.05)


def test_the_rule_is_for_adam() -> None:
    assert of(advise, *GOOD, "optimizer=sgd", "optimizer.lr=0.5") == []


# EleutherAI/pythia, README and model cards: parameters and peak learning rate.
PYTHIA = [
    (70.4e6, 1e-3), (162.3e6, 6e-4), (405.3e6, 3e-4), (1.01e9, 3e-4), (1.41e9, 2e-4), (2.78e9, 1.6e-4),
    (6.86e9, 1.2e-4), (11.8e9, 1.2e-4),
]  # fmt: skip


@pytest.mark.parametrize(("parameters", "published"), PYTHIA)
def test_the_rule_meets_the_published_rates(parameters: float, published: float) -> None:
    assert 1 / 1.75 < published / usual_peak_lr(int(parameters)) < 1.75


def test_every_warning_is_one_line() -> None:
    bad = ["checkpoint.enable=false", "scheduler.decay_steps=900", "scheduler.warmup_frac=0.2", "optimizer.lr=1"]
    found = of(advise, *GOOD, *bad)
    assert len(found) == 5
    assert not any("\n" in line for line in found)
