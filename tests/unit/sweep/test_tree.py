"""Which parts of the runs of a sweep are shared: by hand, and against a comparison of every update."""

import contextlib
import itertools
import time
from collections.abc import Callable, Hashable, Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

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
    WSDAdaptive,
)
from molgen_pretrain.schedules.shapes import DECAY_SHAPES
from molgen_pretrain.sweep.first_difference import first_difference
from molgen_pretrain.sweep.reasons import why_apart, why_trees_are_apart
from molgen_pretrain.sweep.tree import Candidate, Forest, build_forest

SETTINGS = {"optimizer.lr": 1e-3, "data.seed": 1}


def wsds(steps: int = 1000, **values: object) -> Candidate:
    schedule = WSDS(**{"total_steps": steps, "lr_max": 1e-3, "lr_min": 1e-4, "warmup_steps": 40, **values})
    return Candidate(f"steps={steps},{values}", schedule, steps, SETTINGS)


def wsd(steps: int = 1000, **values: object) -> Candidate:
    schedule = WSD(**{"total_steps": steps, "lr_max": 1e-3, "lr_min": 1e-4, "warmup_steps": 40, **values})
    return Candidate(f"steps={steps},{values}", schedule, steps, SETTINGS)


def constant(steps: int, name: str = "") -> Candidate:
    return Candidate(name or f"steps={steps}", Constant(lr_max=1e-3, total_steps=steps), steps, SETTINGS)


def spans(forest: Forest) -> list[tuple[int, int, int]]:
    """Start, end and number of points of every edge."""
    return [(edge.start, edge.end, len(edge.points)) for edge in forest.edges]


def plan(*points: Candidate) -> Forest:
    return build_forest(points, share=True)


@pytest.mark.parametrize("point", [wsds, wsd])
@pytest.mark.parametrize(("steps", "expected"), [(400, 680), (1000, 1700)])
def test_decay_frac(point: Callable[..., Candidate], steps: int, expected: int) -> None:
    forest = plan(*(point(steps, decay_frac=frac) for frac in (0.05, 0.1, 0.2, 0.4)))
    tenth = steps // 10
    assert spans(forest) == [
        (0, 6 * tenth, 4),
        (6 * tenth, 8 * tenth, 3),
        (8 * tenth, 9 * tenth, 2),
        (9 * tenth, steps, 1),
        (9 * tenth, steps, 1),
        (8 * tenth, steps, 1),
        (6 * tenth, steps, 1),
    ]
    assert forest.planned_steps == expected
    assert forest.planned_steps <= 0.55 * forest.independent_steps == 0.55 * 4 * steps


def test_three_levels_of_total_steps_and_decay_frac() -> None:
    points = [wsd(steps, decay_frac=frac) for steps in (400, 1000) for frac in (0.1, 0.2)]
    forest = plan(*points)
    # Decays begin after 360 and 320 of 400 steps, and after 900 and 800 of 1000.
    names = [point.name for point in points]
    assert [(edge.start, edge.end, edge.points) for edge in forest.edges] == [
        (0, 320, tuple(names)),
        (320, 360, (names[0], names[2], names[3])),
        (360, 400, (names[0],)),
        (360, 800, (names[2], names[3])),
        (800, 1000, (names[2],)),
        (800, 1000, (names[3],)),
        (320, 400, (names[1],)),
    ]
    assert forest.planned_steps == 1320
    assert [edge.key for edge in forest.edges if not edge.is_leaf] == ["steps-0-320", "steps-320-360", "steps-360-800"]


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([wsds(decay_steps=100), wsds(decay_steps=300)], 700 + 300 + 300),
        ([wsds(decay_shape="linear"), wsds(decay_shape="cosine"), wsds(decay_shape="sqrt")], 900 + 3 * 100),
        ([wsds(lr_min=1e-4), wsds(lr_min=1e-5)], 900 + 2 * 100),
        ([wsd(decay_steps=200, lr_min=1e-4), wsd(decay_steps=200, lr_min=1e-5)], 2000),  # the warmup starts at lr_min
        ([wsds(checkpoints=(500, 1000)), wsds(checkpoints=(500, 900))], 810 + 2 * 190),
        ([wsds(checkpoints=(500, 1000)), wsds(checkpoints=(1000,))], 450 + 2 * 550),
        ([wsds(decay_beta2=0.99), wsds()], 900 + 2 * 100),
    ],
)
def test_what_begins_late_is_shared_until_then(points: list[Candidate], expected: int) -> None:
    assert plan(*points).planned_steps == expected


def test_a_run_that_ends_on_the_way_owns_the_edge_that_ends_with_it() -> None:
    forest = plan(constant(40), constant(20), constant(60))
    assert [(edge.key, edge.start, edge.end, edge.parent, edge.owner) for edge in forest.edges] == [
        ("steps-0-20", 0, 20, None, "steps=20"),
        ("steps-20-40", 20, 40, "steps-0-20", "steps=40"),
        ("steps=40", 40, 40, "steps-20-40", "steps=40"),
        ("steps=60", 40, 60, "steps-20-40", "steps=60"),
        ("steps=20", 20, 20, "steps-0-20", "steps=20"),
    ]
    assert (forest.planned_steps, forest.independent_steps) == (60, 120)


def test_equal_points_are_trained_once() -> None:
    forest = plan(constant(30, "a"), constant(30, "b"))
    assert [(edge.key, edge.start, edge.end) for edge in forest.edges] == [
        ("steps-0-30", 0, 30),
        ("a", 30, 30),
        ("b", 30, 30),
    ]


def test_other_settings_make_other_trees_with_keys_of_their_own() -> None:
    points = [
        Candidate(f"seed={seed},steps={steps}", constant(steps).schedule, steps, {**SETTINGS, "data.seed": seed})
        for steps in (20, 40)
        for seed in (1, 2)
    ]
    forest = plan(*points)
    assert [edge.key for edge in forest.children(None)] == ["steps-0-20", "steps-0-20-2"]
    assert forest.planned_steps == 80
    assert list(why_trees_are_apart(forest)) == [
        "there are 2 separate trees: points differ in data.seed from the first update"
    ]


def test_without_sharing_every_point_is_trained_alone() -> None:
    forest = build_forest([constant(20), constant(40)], share=False)
    assert [(edge.key, edge.start, edge.end) for edge in forest.edges] == [("steps=20", 0, 20), ("steps=40", 0, 40)]


def test_weight_decay_that_runs_over_the_whole_run_shares_nothing_and_is_named() -> None:
    over_the_run = {"start_weight_decay": 0.1, "end_weight_decay": 0.0, "weight_decay_incr_style": "linear"}
    forest = plan(*(wsd(steps, decay_steps=100, **over_the_run) for steps in (400, 1000)))
    assert forest.planned_steps == forest.independent_steps == 1400
    (reason,) = why_trees_are_apart(forest)
    assert reason.startswith("nothing can be shared: the weight decay of update 1 is 0.09975 and 0.0999 ")
    assert "scheduler.total_steps: 400 -> 1000" in reason


def test_a_decay_that_the_loss_decides_is_not_shared() -> None:
    def adaptive(name: str, steps: int, **values: object) -> Candidate:
        schedule = WSDAdaptive(lr_max=1e-3, lr_min=0.0, total_steps=steps, decay_steps=50, **values)
        return Candidate(name, schedule, steps, SETTINGS)

    points = [adaptive("a", 400), adaptive("b", 400), adaptive("c", 500)]
    forest = plan(*points)
    assert forest.planned_steps == forest.independent_steps == 400 + 400 + 500
    assert "the loss decides when a decays" in why_apart(points[0], points[1])


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (wsds(decay_frac=0.1), wsds(decay_frac=0.2), "the learning rate of update 801 is 0.001 and 0.0009955 "),
        (wsds(), wsds(decay_beta2=0.99), "beta2 of update 901 is unset and 0.99 "),
        (constant(20), constant(40), "they are equal up to update 20, where steps=20 ends"),
        (constant(20), Candidate("x", constant(20).schedule, 20, {"optimizer.lr": 1}), "data.seed, optimizer.lr diff"),
    ],
)
def test_why_points_part(a: Candidate, b: Candidate, expected: str) -> None:
    assert why_apart(a, b).startswith(expected)


def test_a_million_steps_take_no_time() -> None:
    million = 1_000_000
    twentieths = range(million // 20, million + 1, million // 20)
    sweeps = [
        [wsd(million, warmup_steps=10_000, decay_frac=percent / 100) for percent in range(1, 21)],
        [
            wsds(million, checkpoints=(*range(100_000, 900_000, 100_000), end), decay_frac=0.4)
            for end in twentieths[17:]
        ],
        [
            Candidate(f"{name}{steps}", schedule, steps, {"scheduler": name})
            for steps in twentieths
            for name, schedule in {
                "cosine": Cosine(lr_max=1.0, total_steps=steps, decay_steps=million),
                "inverse_sqrt": InverseSqrt(lr_max=1.0, total_steps=steps, warmup_steps=100),
                "megatron": Megatron(
                    lr_max=1.0, total_steps=steps, lr_decay_style="inverse-square-root", lr_warmup_iters=100
                ),
            }.items()
        ],
    ]
    begin = time.perf_counter()
    planned = [build_forest(points, share=True).planned_steps for points in sweeps]
    assert time.perf_counter() - begin < 2
    # A trunk up to the fork of the two shortest decays, and the decays of 1 % (from that fork on) to 20 %.
    decay_frac = 980_000 + 20_000 + sum(10_000 * percent for percent in range(2, 21))
    assert planned == [decay_frac, 800_000 + 3 * 200_000, 3 * million]


WEIGHT_DECAYS = (
    {},
    {"start_weight_decay": 0.1},
    {"start_weight_decay": 0.1, "end_weight_decay": 0.1, "weight_decay_incr_style": "linear"},
    {"start_weight_decay": 0.1, "end_weight_decay": 0.2, "weight_decay_incr_style": "linear"},
    {"start_weight_decay": 0.1, "end_weight_decay": 0.1 + 1e-16, "weight_decay_incr_style": "cosine"},
)
# Few values for each, so that plans often agree for a while.
COMMON = {"total_steps": (24, 30, 60), "decay_beta2": (None, 0.99), "weight decay": WEIGHT_DECAYS}
FIELDS: dict[type[Schedule], dict[str, Sequence[object]]] = {
    Constant: {"warmup_steps": (0, 5), "warmup_init": (0.0, 1.0)},
    Cosine: {"warmup_steps": (5, 6), "decay_steps": (None, 24, 1 << 40), "lr_min": (0.1, 0.2, 1.0)},
    Linear: {"warmup_steps": (5,), "warmup_init": (0.0, 0.1), "decay_steps": (None, 24, 31), "lr_min": (0.1, 1.0)},
    InverseSqrt: {"warmup_steps": (0, 5), "decay_steps": (None, 20, 31), "lr_min": (0.1, 0.5), "timescale": (None, 5)},
    WSD: {
        "warmup_steps": (5, 6), "warmup_init": (None, 0.0), "lr_min": (0.1, 0.2), "stable_steps": (None, 7),
        "decay_steps": (8, 12), "decay_shape": DECAY_SHAPES, "blend_steps": (0, 3, 5),
    },
    WSDAdaptive: {"warmup_steps": (5,), "lr_min": (0.1,), "decay_steps": (8, 12), "decay_start": (None, 10)},
    WSDS: {
        "warmup_steps": (0, 5), "lr_min": (0.1, 0.2), "decay_frac": (0.1, 0.3), "decay_steps": (None, 6),
        "checkpoints": ((), (10,), (10, 20), (10, 19)), "checkpoints_frac": ((), (0.5, 1.0)),
        "decay_frac_of": ("target", "period"), "decay_shape": DECAY_SHAPES,
    },
    SGDR: {
        "warmup_steps": (5,), "warmup_init": (None, 0.0), "lr_min": (0.1, 0.2), "cycle_length": (None, 7),
        "cycles": (2, 3), "cycle_mult": (1.0, 1.5),
    },
    Megatron: {
        "lr_decay_style": ("constant", "linear", "cosine", "inverse-square-root", "WSD"), "lr_min": (0.1, 0.2),
        "lr_decay_iters": (None, 24, 60), "lr_warmup_iters": (0, 5), "lr_warmup_fraction": (None, 0.1, 0.11),
        "lr_warmup_init": (0.0, 0.1), "lr_wsd_decay_style": ("linear", "exponential"),
        "lr_wsd_decay_iters": (8, 12, 23),
    },
}  # fmt: skip


@st.composite
def families(draw: st.DrawFn) -> list[Schedule]:
    """A schedule, and those that differ from it in one field."""
    cls = draw(st.sampled_from(list(FIELDS)))
    fields = {**COMMON, **FIELDS[cls]}
    base = {name: draw(st.sampled_from(values)) for name, values in fields.items()}
    family = []
    for values in [base, *({**base, name: value} for name in fields for value in fields[name] if value != base[name])]:
        weight_decay = values.pop("weight decay")
        with contextlib.suppress(ScheduleError):
            family.append(cls(lr_max=1.0, **values, **weight_decay))
    assume(family)
    return family


def values_of(schedule: Schedule, update: int) -> tuple[float | None, ...]:
    return schedule.lr(update), schedule.weight_decay(update), schedule.beta2(update)


@given(families(), st.integers(2, 40))
@settings(max_examples=250, deadline=None)
def test_the_first_difference_is_that_of_a_comparison_update_by_update(family: list[Schedule], first: int) -> None:
    for other, begin in itertools.product(family[1:], (1, first)):
        unequal = (n for n in range(begin, 61) if values_of(family[0], n) != values_of(other, n))
        found = first_difference(family[0], other, begin, 60)
        assert (found and found.update) == next(unequal, None)


@st.composite
def sweeps(draw: st.DrawFn) -> list[Candidate]:
    schedules = draw(families()) + draw(st.just([]) | families())
    return [
        Candidate(
            f"p{index}", draw(st.sampled_from(schedules)), draw(st.sampled_from((20, 24, 60))),
            {"seed": draw(st.sampled_from((0, 0, 0, 1)))},
        )
        for index in range(draw(st.integers(2, 5)))
    ]  # fmt: skip


def run_of(point: Candidate) -> list[Hashable]:
    """All that decides each update of a run."""
    schedule, seed = point.schedule, point.settings["seed"]
    if isinstance(schedule, WSDAdaptive):
        return [point.name] * point.steps
    updates = range(1, point.steps + 1)
    return [(seed, *values_of(schedule, n)) for n in updates]


@given(sweeps())
@settings(max_examples=250, deadline=None)
def test_the_tree_is_that_of_the_runs_compared_update_by_update(points: list[Candidate]) -> None:
    forest = build_forest(points, share=True)
    runs = {point.name: run_of(point) for point in points}
    assert forest.planned_steps == len({tuple(run[:n]) for run in runs.values() for n in range(1, len(run) + 1)})
    assert forest.independent_steps == sum(map(len, runs.values()))

    edges = {edge.key: edge for edge in forest.edges}
    assert len(edges) == len(forest.edges)
    assert sorted(edge.key for edge in forest.edges if edge.is_leaf) == sorted(runs)
    for position, edge in enumerate(forest.edges):
        parent = edges[edge.parent] if edge.parent is not None else None
        assert edge.start == (parent.end if parent else 0)
        assert parent is None or (parent in forest.edges[:position] and set(edge.points) <= set(parent.points))
        assert len({tuple(runs[name][: edge.end]) for name in edge.points}) == 1
        ends_with_it = [name for name in edge.points if len(runs[name]) == edge.end]
        assert edge.owner == (ends_with_it or edge.points)[0]
        if edge.is_leaf:
            assert ends_with_it == [edge.key]
        else:
            assert edge.start < edge.end
            assert len(edge.points) > 1
            assert len(forest.children(edge.key)) > 1
