"""What holds for every schedule with any parameters that it accepts."""

import itertools
import math
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from molgen_pretrain.schedules import (
    SGDR,
    WSD,
    Constant,
    Cosine,
    InverseSqrt,
    Linear,
    Megatron,
    Phase,
    Schedule,
    WSDAdaptive,
    decay_crossings,
    schedule_from_state,
    schedule_state,
)
from molgen_pretrain.schedules.shapes import DECAY_SHAPES
from molgen_pretrain.schedules.wsds import WSDS

fractions = st.floats(0.0, 1.0)
small = st.floats(1e-6, 1.0)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    total = draw(st.integers(2, 3000))
    warmup = draw(st.integers(0, total - 1))
    lr_max = draw(st.floats(1e-9, 10.0))
    lr_min = lr_max * draw(st.just(0.0) | small)
    shape = draw(st.sampled_from(DECAY_SHAPES if lr_min > 0 else [s for s in DECAY_SHAPES if s != "inverse"]))
    weight_decay = {
        "start_weight_decay": draw(fractions),
        "end_weight_decay": draw(fractions),
        "weight_decay_incr_style": draw(st.sampled_from(["linear", "cosine"])),
    }
    beta2 = draw(st.none() | st.floats(0.0, 0.999))
    common = {"total_steps": total, "lr_max": lr_max, "decay_beta2": beta2, **weight_decay}
    init = {"warmup_init": lr_max * draw(fractions)}
    length = draw(st.integers(1, total - warmup))
    kind = draw(
        st.sampled_from(
            [Constant, Cosine, Linear, InverseSqrt, WSD, "open", WSDAdaptive, WSDS, SGDR, "cycles", Megatron]
        )
    )
    if kind is Constant:
        return Constant(**common, **init, warmup_steps=warmup)
    if kind in (Cosine, Linear, InverseSqrt):
        end = draw(st.none() | st.integers(warmup + 1, 2 * total))
        return kind(**common, **init, warmup_steps=warmup, min_lr=lr_min, decay_steps=end)
    if kind is WSD:
        return WSD(
            **common, **init, lr_min=lr_min, warmup_steps=warmup, decay_steps=length, decay_shape=shape,
            stable_steps=draw(st.none() | st.integers(0, total)), blend_steps=draw(st.integers(0, length)),
        )  # fmt: skip
    if kind == "open":
        return WSD(**common, lr_min=lr_min, warmup_steps=warmup)
    if kind is WSDAdaptive:
        start = draw(st.none() | st.integers(warmup, total - length))
        return WSDAdaptive(
            **common, lr_min=lr_min, warmup_steps=warmup, decay_steps=length, decay_shape=shape, decay_start=start
        )
    if kind is WSDS:
        checkpoints = draw(st.sets(st.integers(warmup + 1, total), min_size=1, max_size=6))
        return WSDS(
            **common, lr_min=lr_min, warmup_steps=warmup, checkpoints=tuple(sorted(checkpoints)), decay_shape=shape,
            decay_frac=draw(st.floats(0.001, 1.0)), decay_steps=draw(st.none() | st.integers(1, 4000)),
            decay_frac_of=draw(st.sampled_from(["target", "period"])),
        )  # fmt: skip
    if kind in (SGDR, "cycles"):
        lengths = {"cycles": draw(st.integers(1, 9))} if kind == "cycles" else {"cycle_length": length}
        return SGDR(
            **common, **init, lr_min=lr_min, warmup_steps=warmup, **lengths,
            cycle_mult=draw(st.just(1.0) | st.floats(1.0, 1.001) | st.floats(1.0, 8.0)),
        )  # fmt: skip
    return Megatron(
        **common, min_lr=lr_min, lr_warmup_init=init["warmup_init"],
        lr_decay_style=draw(st.sampled_from(["constant", "linear", "cosine", "inverse-square-root", "WSD"])),
        lr_wsd_decay_style=draw(st.sampled_from(["exponential", "linear", "cosine", "minus_sqrt"])),
        lr_wsd_decay_iters=draw(st.integers(0, 2 * total)),
        lr_warmup_iters=warmup, lr_warmup_fraction=draw(st.none() | st.floats(0.0, 0.99)),
        lr_decay_iters=draw(st.none() | st.integers(total, 2 * total)),
    )  # fmt: skip


@given(schedules(), st.integers(0, 5000) | st.integers(0) | st.just(10**400))
@settings(max_examples=300, deadline=None)
def test_defined_and_bounded_at_every_step(schedule: Schedule, step: int) -> None:
    lr = schedule.lr(step)
    lowest = 0.0 if isinstance(schedule, (InverseSqrt, Megatron, WSDS, Constant)) else schedule.lr_min
    if step >= getattr(schedule, "warmup_steps", 0):
        assert lowest <= lr <= schedule.lr_max
    assert 0 <= lr <= schedule.lr_max
    low, high = sorted((schedule.start_weight_decay, schedule.end_weight_decay))
    assert low - 1e-12 <= schedule.weight_decay(step) <= high + 1e-12
    assert 0.0 <= schedule.phase_progress(step) <= 1.0
    assert schedule.beta2(step) in (None, schedule.decay_beta2)
    piece = schedule.piece(step)
    assert piece.first <= step
    assert piece.last is None or step <= piece.last


@given(schedules(), st.integers(1, 4000))
@settings(max_examples=150, deadline=None)
def test_spans_cover_every_update_once_and_agree_with_phase(schedule: Schedule, last_step: int) -> None:
    spans = schedule.phase_spans(last_step)
    covered = [(step, span.phase) for span in spans for step in range(span.first, span.last + 1)]
    assert covered == [(step, schedule.phase(step)) for step in range(1, last_step + 1)]
    for span in spans:
        progress = [schedule.phase_progress(step) for step in range(span.first, span.last + 1)]
        assert progress == sorted(progress)


@given(schedules())
@settings(max_examples=150, deadline=None)
def test_each_piece_is_monotone(schedule: Schedule) -> None:
    for span in schedule.phase_spans(3000):
        values = [schedule.lr(step) for step in range(span.first, span.last + 1)]
        if span.phase is Phase.WARMUP:
            assert values == sorted(values)
        elif span.phase is Phase.DECAY:
            # 1e-12: a blended entry rounds twice.
            assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(values))
        else:
            assert len(set(values)) == 1


@given(schedules())
@settings(max_examples=150, deadline=None)
def test_boundaries_are_exact(schedule: Schedule) -> None:
    if isinstance(schedule, Megatron):
        assert schedule.lr(schedule.lr_decay_steps + 1) in (schedule.lr_max, schedule.min_lr)
        return
    assert schedule.lr(schedule.warmup_steps) == schedule.lr_max
    if isinstance(schedule, (WSD, WSDAdaptive, WSDS, Cosine, Linear)):
        assert all(schedule.lr(milestone) == schedule.lr_min for milestone in schedule.milestones)
    if isinstance(schedule, SGDR):
        for window in schedule.decay_windows(schedule.total_steps):
            assert schedule.lr(window.start) == schedule.lr_max
        assert len(schedule.milestones) == len(set(schedule.milestones))


@given(schedules())
@settings(max_examples=100, deadline=None)
def test_the_stored_state_brings_it_back(schedule: Schedule) -> None:
    assert schedule_from_state(schedule_state(schedule)) == schedule


@given(schedules(), st.lists(st.floats(1e-9, 10.0), max_size=4))
@settings(max_examples=100, deadline=None)
def test_crossings_are_what_a_scan_finds(schedule: Schedule, thresholds: list[float]) -> None:
    last_step = 1500
    starts = {span.first for span in schedule.phase_spans(last_step)}
    expected = {}
    for threshold in thresholds:
        was_above = False
        for step in range(1, last_step + 1):
            if schedule.phase(step) is not Phase.DECAY:
                continue
            if step in starts:
                was_above = max(schedule.lr(step - 1), schedule.lr(step)) > threshold
            if was_above and schedule.lr(step) <= threshold:
                expected[step] = min(threshold, expected.get(step, math.inf))
                break
    assert decay_crossings(schedule, thresholds, last_step) == expected


@given(st.integers(1, 60), st.floats(1.0, 1.2), st.integers(0, 20))
@settings(max_examples=100, deadline=None)
def test_cycles_have_the_lengths_of_the_rule(length: int, mult: float, warmup: int) -> None:
    schedule = SGDR(lr_max=1.0, lr_min=0.1, warmup_steps=warmup, cycle_length=length, cycle_mult=mult)
    counted = Counter(schedule.cycle_info(step)[::2] for step in range(warmup, 2000))
    counted.pop(max(counted))  # the range ends inside the last one
    for (number, said), steps in counted.items():
        assert steps == said == int(length * mult**number)
