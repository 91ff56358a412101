"""Every curve that another project's code produced, at every step that its `use` allows."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

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
    Schedule,
    ScheduleError,
    differences,
    schedule_from_state,
    schedule_state,
)

ORACLES = [json.loads(path.read_text()) for path in sorted((Path(__file__).parent / "oracles").glob("*.json"))]
SHARED = Path(__file__).resolve().parents[4] / "shared" / "oracles"


def close(value: float) -> object:
    return pytest.approx(value, rel=1e-9, abs=0)


def wsds(p: dict) -> WSDS:
    if "milestones" in p:  # OLMo-core
        return WSDS(
            lr_max=p["initial_lr"],
            lr_min=p["decay_min_lr"],
            warmup_steps=p["warmup"],
            checkpoints=tuple(p["milestones"]),
            decay_steps=p["decay"],
        )
    names = ("lr_max", "lr_min", "warmup_steps", "checkpoints", "decay_frac", "decay_steps")
    return WSDS(**{name: p[name] for name in names})


def wsd(p: dict) -> WSD:
    return WSD(
        lr_max=p["peak_lr"],
        lr_min=p["min_lr"],
        warmup_steps=p["warmup_steps"],
        stable_steps=p["stable_steps"],
        decay_steps=p["decay_steps"],
        decay_shape=p.get("decay_type", "linear"),
    )


def sgdr(p: dict) -> SGDR:
    return SGDR(
        lr_max=p["peak_lr"],
        lr_min=p["min_lr"],
        warmup_steps=p["warmup_steps"],
        cycle_length=p["cycle_length"],
        cycle_mult=p["cycle_mult"],
    )


def transformers(p: dict) -> Schedule:
    common = {"lr_max": p["lr"], "warmup_steps": p["num_warmup_steps"]}
    if "decay_type" in p:
        return WSD(
            **common,
            lr_min=p["lr"] * p["min_lr_ratio"],
            stable_steps=p["num_stable_steps"],
            decay_steps=p["num_decay_steps"],
            decay_shape={"1-sqrt": "sqrt"}.get(p["decay_type"], p["decay_type"]),
        )
    if "num_training_steps" in p:
        return Cosine(**common, min_lr=p["min_lr"], decay_steps=p["num_training_steps"])
    return InverseSqrt(**common)


def megatron_core(p: dict) -> Megatron:
    """Arguments of OptimizerParamScheduler, which counts in steps."""
    return Megatron(
        lr=p["max_lr"],
        min_lr=p["min_lr"],
        train_iters=p["wd_incr_steps"],
        lr_decay_style=p["lr_decay_style"],
        lr_decay_iters=p["lr_decay_steps"],
        lr_warmup_iters=p["lr_warmup_steps"],
        lr_warmup_init=p["init_lr"],
        lr_wsd_decay_style=p["lr_wsd_decay_style"] or "exponential",
        lr_wsd_decay_iters=p["wsd_decay_steps"],
        start_weight_decay=p["start_wd"],
        end_weight_decay=p["end_wd"],
        weight_decay_incr_style=p["wd_incr_style"],
        override_opt_param_scheduler=p["override_opt_param_scheduler"],
        use_checkpoint_opt_param_scheduler=p["use_checkpoint_opt_param_scheduler"],
    )


def megatron_arguments(p: dict) -> Megatron:
    """The command line's arguments, as they are."""
    return Megatron(**{k: v for k, v in p.items() if k not in ("train_samples", "global_batch_size")})


def megatron_load(p: dict) -> Schedule:
    """A resume whose config changed: the policy that the two switches ask for."""
    saved, new = megatron_core(p["saved_config"]), megatron_core(p["new_config"])
    assert differences(schedule_state(saved), schedule_state(new))
    if new.override_opt_param_scheduler:
        return new
    assert new.use_checkpoint_opt_param_scheduler
    return schedule_from_state(schedule_state(saved))


BUILDERS: dict[str, Callable[[dict], Schedule]] = {
    "wsds_": wsds,
    "wsd_": wsd,
    "sgdr_": sgdr,
    "hf_": transformers,
    "megatron_load_": megatron_load,
    "megatron_iters_": megatron_arguments,
    "megatron_": megatron_core,
}


def build(oracle: dict) -> Schedule:
    return next(make for prefix, make in BUILDERS.items() if oracle["id"].startswith(prefix))(oracle["params"])


def last_step_to_use(oracle: dict) -> float:
    """The README beside the curves: a `use` that is not plain strict says what to leave out."""
    use = oracle["use"]
    if use.startswith("strict up to lr_decay_steps"):
        return oracle["params"]["lr_decay_steps"]
    up_to = re.match(r"strict up to step (\d+)", use)
    assert up_to or use == "strict" or use.startswith("strict (guide semantics"), use
    return int(up_to.group(1)) if up_to else float("inf")


def edited(schedule: WSD, edit: str, at: int) -> WSD:
    """A change of plan mid-run, in the words of the file."""
    steps = int(re.search(r"\((\d+)\)", edit).group(1))
    return schedule.extend_stable(steps) if edit.startswith("extend") else schedule.begin_decay(at, steps)


@pytest.mark.parametrize("oracle", ORACLES, ids=lambda oracle: oracle["id"])
def test_equals_the_curve(oracle: dict) -> None:
    schedule = build(oracle)
    edits = dict(oracle.get("edits", []))
    skipped = set(oracle.get("divergent_steps", []))
    asserted = 0
    is_weight_decay = "(weight_decay)" in oracle["scheduler"]
    for step, expected in oracle["points"]:
        for at in [at for at in edits if at <= step]:
            schedule = edited(schedule, edits.pop(at), at)
        if step <= last_step_to_use(oracle) and step not in skipped:
            value = schedule.weight_decay(step) if is_weight_decay else schedule.lr(step)
            assert value == close(expected), f"step {step}"
            asserted += 1
    assert asserted >= 30
    assert not edits


@pytest.mark.parametrize("oracle", [o for o in ORACLES if "points_weight_decay" in o], ids=lambda oracle: oracle["id"])
def test_equals_the_weight_decay(oracle: dict) -> None:
    schedule = build(oracle)
    assert [schedule.weight_decay(s) for s, _ in oracle["points_weight_decay"]] == [
        close(value) for _, value in oracle["points_weight_decay"]
    ]


@pytest.mark.parametrize("oracle", [o for o in ORACLES if "phases" in o], ids=lambda oracle: oracle["id"])
def test_equals_the_phases(oracle: dict) -> None:
    assert [[step, build(oracle).phase(step).value] for step, _ in oracle["phases"]] == oracle["phases"]


@pytest.mark.parametrize("oracle", [o for o in ORACLES if "cycle_info" in o], ids=lambda oracle: oracle["id"])
def test_equals_the_cycles(oracle: dict) -> None:
    schedule = build(oracle)
    assert [[step, *schedule.cycle_info(step)] for step, *_ in oracle["cycle_info"]] == oracle["cycle_info"]
    start = schedule.warmup_steps
    for number, length in enumerate(oracle["cycle_lengths"]):
        assert schedule.cycle_info(start) == (number, 0, length)
        start += length


@pytest.mark.parametrize("oracle", [o for o in ORACLES if "computed" in o], ids=lambda oracle: oracle["id"])
def test_equals_what_megatron_computes(oracle: dict) -> None:
    assert build(oracle).computed == oracle["computed"]


def test_after_a_resume_with_override_the_next_update_has_the_new_value() -> None:
    oracle = next(o for o in ORACLES if o["id"] == "megatron_load_03_override")
    after, schedule = oracle["immediately_after_load"], build(oracle)
    assert schedule.lr(after["num_steps"]) == close(after["param_group_lr"])
    assert schedule.weight_decay(after["num_steps"]) == close(after["param_group_weight_decay"])


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared folder is not beside this checkout")
def test_all_curves_are_here() -> None:
    here = {oracle["id"] for oracle in ORACLES}
    assert {path.stem for path in SHARED.glob("*.json")} <= here


# More curves: the other styles, against the formulas of the projects, written out.


@pytest.mark.parametrize("style", ["exponential", "linear", "cosine", "minus_sqrt"])
@pytest.mark.parametrize("warmup", [0, 100])
def test_megatron_wsd_styles_from_its_formula(style: str, warmup: int) -> None:
    schedule = Megatron(
        lr=1e-3,
        min_lr=1e-4,
        train_iters=1000,
        lr_decay_style="WSD",
        lr_warmup_iters=warmup,
        lr_wsd_decay_style=style,
        lr_wsd_decay_iters=200,
    )
    coefficient = {
        "exponential": lambda p: 2 * 0.5**p - 1,
        "linear": lambda p: 1 - p,
        "cosine": lambda p: 0.5 * (math.cos(math.pi * p) + 1),
        "minus_sqrt": lambda p: 1 - math.sqrt(p),
    }[style]
    assert (schedule.lr(warmup), schedule.lr(800), schedule.lr(1000), schedule.lr(1500)) == (1e-3, 1e-3, 1e-4, 1e-4)
    for step in range(801, 1001):
        assert schedule.lr(step) == close(1e-4 + coefficient((step - 800) / 200) * 9e-4)


def test_torch_and_transformers_agree_on_curves_that_are_in_no_file() -> None:
    torch = pytest.importorskip("torch")
    optimization = pytest.importorskip("transformers.optimization")

    def curve(make: Callable) -> list[float]:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
        scheduler = make(optimizer)
        values = []
        for _ in range(120):
            values.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return values

    warm = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts
    cases: list[tuple[Schedule, Callable]] = [
        (SGDR(lr_max=0.3, lr_min=0.01, cycle_length=7, cycle_mult=3), lambda o: warm(o, 7, 3, eta_min=0.01)),
        (SGDR(lr_max=0.3, lr_min=0.01, cycle_length=11), lambda o: warm(o, 11, eta_min=0.01)),
        (
            Linear(lr_max=0.3, warmup_steps=9, decay_steps=77),
            lambda o: optimization.get_linear_schedule_with_warmup(o, 9, 77),
        ),
        (Constant(lr_max=0.3, warmup_steps=9), lambda o: optimization.get_constant_schedule_with_warmup(o, 9)),
        (
            InverseSqrt(lr_max=0.3, warmup_steps=9, timescale=31),
            lambda o: optimization.get_inverse_sqrt_schedule(o, 9, timescale=31),
        ),
        (
            WSD(lr_max=0.3, lr_min=0.03, warmup_steps=9, stable_steps=40, decay_steps=50, decay_shape="cosine"),
            lambda o: optimization.get_wsd_schedule(
                o, num_warmup_steps=9, num_stable_steps=40, num_decay_steps=50, decay_type="cosine", min_lr_ratio=0.1
            ),
        ),
    ]
    for schedule, make in cases:
        assert [schedule.lr(n) for n in range(120)] == pytest.approx(curve(make), rel=1e-9, abs=1e-17), schedule


def test_megatron_refuses_a_warmup_as_long_as_the_decay() -> None:
    with pytest.raises(ScheduleError, match="must be below the 100 decay iterations"):
        Megatron(lr=1e-3, train_iters=200, lr_decay_iters=100, lr_warmup_iters=100, lr_decay_style="constant")
