"""Names of sweeps and points."""

import re

import pytest

from molgen_pretrain.sweep.names import fit_for_a_folder, point_names, sweep_name, varying


def test_a_point_is_named_by_what_varies_with_the_shortest_clear_keys() -> None:
    points = [["scheduler.decay_frac=0.1", "optimizer.lr=1e-3", "training.steps=40"]]
    points += [["scheduler.decay_frac=0.2", "optimizer.lr=1e-3", "training.steps=40"]]
    assert point_names(varying(points)) == ["decay_frac=0.1", "decay_frac=0.2"]
    ambiguous = [
        ["training.seed=1", "data.seed=2"],
        ["training.seed=2", "data.seed=2"],
        ["training.seed=1", "data.seed=3"],
    ]
    assert point_names(varying(ambiguous))[0] == "training.seed=1,data.seed=2"
    assert point_names(varying([["+experiment=a"], ["+experiment=b"]])) == ["experiment=a", "experiment=b"]


def test_a_lone_point_has_a_name_too() -> None:
    assert point_names(varying([["training.steps=40"]])) == ["run"]


def test_the_order_of_points_and_overrides_changes_no_name() -> None:
    points = [[f"optimizer.lr={lr}", f"training.seed={seed}"] for lr in ("1e-3", "2e-3") for seed in (1, 2)]
    names = dict(zip(map(tuple, points), point_names(varying(points)), strict=True))
    assert [names[tuple(p)] for p in reversed(points)] == point_names(varying(points[::-1]))
    assert sweep_name("x", ["a=1", "b=2"]) == sweep_name("x", ["b=2", "a=1"]) != sweep_name("x", ["a=1", "b=3"])


@pytest.mark.parametrize(
    "values",
    [
        ["[20,40]", "[30,40]"],
        ["a/b", "a b"],  # alike once they fit a folder's name
        ["1", "1"],
        ["x" * 400, "x" * 399 + "y"],
        ["${paths.data}/a", "../../etc"],
        ["{a:1}", "'a:1'"],
    ],
)
def test_names_are_unique_and_fit_a_folder(values: list[str]) -> None:
    names = point_names([[f"data.train_path={value}"] for value in values])
    assert len(set(names)) == len(values)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._=,+-]{0,160}", name)


def test_a_description_that_fits_no_folder_still_names_a_sweep() -> None:
    assert re.fullmatch(r"sweep-[0-9a-f]{8}", sweep_name("///", []))
    assert fit_for_a_folder("decay of [0.1, 0.2]") == "decay-of-0.1,-0.2"
