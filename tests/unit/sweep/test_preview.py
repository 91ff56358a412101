"""The plan of a sweep, as people read it before anything is trained."""

from molgen_pretrain.schedules import WSD, Constant
from molgen_pretrain.sweep.preview import preview
from molgen_pretrain.sweep.tree import Candidate, Forest, build_forest


def decay_fracs(*fracs: float, share: bool = True) -> Forest:
    return build_forest(
        [
            Candidate(
                f"decay_frac={frac}",
                WSD(lr_max=1e-3, lr_min=1e-4, warmup_steps=40, total_steps=1000, decay_frac=frac),
                1000,
                {},
            )
            for frac in fracs
        ],
        share=share,
    )


def constants(*points: tuple[str, int, float]) -> Forest:
    return build_forest(
        [Candidate(name, Constant(lr_max=lr), steps, {"optimizer.lr": lr}) for name, steps, lr in points], share=True
    )


def test_a_tree_with_what_is_done() -> None:
    text = preview(decay_fracs(0.05, 0.1, 0.2, 0.4), done={"steps-0-600": 600, "steps-600-800": 112})
    assert text == (
        """\
4 points: 1,700 steps planned, 4,000 as independent runs: 57.5% saved
712 steps done, 988 left to train

● 1-600 · 600 steps · done               4 points, until the learning rate differs
├─○ 601-1,000 · 400 steps                decay_frac=0.4
● 601-800 · 200 steps · 112 of 200 done  3 points, until the learning rate differs
├─○ 801-1,000 · 200 steps                decay_frac=0.2
● 801-900 · 100 steps                    2 points, until the learning rate differs
├─○ 901-1,000 · 100 steps                decay_frac=0.05
└─○ 901-1,000 · 100 steps                decay_frac=0.1"""
    )


def test_runs_that_end_on_the_way_are_named_where_they_end() -> None:
    text = preview(constants(("short", 20, 0.1), ("same", 20, 0.1), ("long", 40, 0.1), ("other", 40, 0.2)))
    assert text.splitlines()[2:] == [
        "● 1-20 · 20 steps     3 points, short, same end here",
        "└─○ 21-40 · 20 steps  long",
        "○ 1-40 · 40 steps     other",
        "",
        "there are 2 separate trees: points differ in optimizer.lr from the first update",
    ]


def test_nothing_to_share_is_said_with_its_reason() -> None:
    text = preview(constants(*((f"lr={n}", 1000, n / 10) for n in range(1, 4))))
    assert "3 points: 3,000 steps planned, as many as independent runs take" in text
    assert text.endswith("nothing can be shared: points differ in optimizer.lr from the first update")


def test_a_sweep_that_does_not_share_hears_what_it_could_save() -> None:
    text = preview(decay_fracs(0.1, 0.2, share=False))
    assert "2,000 steps planned, as many as independent runs take" in text
    assert text.endswith("hydra/sweeper=trunk trains what points have in common once: 1,200 steps, 40.0% fewer")
    assert "trunk" not in preview(decay_fracs(0.1, share=False))


def test_many_points_stay_readable() -> None:
    forks = preview(constants(*((f"n={n}", 1000 * (1 + n % 2), 1 + n // 2) for n in range(100))))
    assert all(f"n={n} ends here" in forks for n in range(0, 100, 2))
    assert all(f"n={n}\n" in forks for n in range(1, 100, 2))
    alike = preview(constants(*((f"n={n}", 1000, float(n)) for n in range(1, 101)))).splitlines()
    assert alike[2].startswith("○ 1-1,000 · 1,000 steps each  100 points: n=1, n=2, ")
    assert len(alike) < 10


def test_lines_fit_whatever_the_names_and_the_depth() -> None:
    long = "scheduler.a_key_that_is_about_as_long_as_they_ever_get=[1,2,3],optimizer.lr="
    nested = preview(constants(*((f"{long}{n}", 1_000_000 * n, 1.0) for n in range(1, 101))))
    separate = preview(constants(*((f"{long}{n}", 1000, float(n)) for n in range(1, 101))))
    for text in (nested, separate):
        assert 80 < max(map(len, text.splitlines())) <= 110
