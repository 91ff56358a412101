"""The preview, in process: what it prints, writes and refuses."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

from molgen_pretrain.config.compose import compose_run
from molgen_pretrain.config.plain import build_schedule
from molgen_pretrain.tools.schedule import main
from molgen_pretrain.tools.schedule_plan import overlaid, plan_run

FOUR = ("training.steps=4000", "scheduler.warmup_frac=0.02", "scheduler.checkpoints=[1000,2000,3000,4000]")


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("RUN_NAME", "WANDB_RUN_NAME", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def preview(capsys):
    def run(*arguments: str, code: int = 0) -> str:
        assert main(arguments) == code
        out, err = capsys.readouterr()
        return err if code else out

    return run


def table_row(output: str, *start: str) -> list[str]:
    rows = [line.split() for line in output.splitlines()]
    (row,) = [row for row in rows if row[: len(start)] == list(start)]
    return row


def test_phases_milestones_and_share(preview) -> None:
    output = preview(*FOUR, "scheduler.decay_frac=0.1")
    assert "4,000 steps of 4,096 tokens: 16.4M tokens" in output
    assert table_row(output, "warmup") == ["warmup", "1", "79", "79", "3.75e-05", "2.96e-03", "324k", "2.0%"]
    assert table_row(output, "decay", "3,601")[2:] == ["4,000", "400", "2.99e-03", "1.00e-04", "1.64M", "10.0%"]
    assert "1,000 of 4,000 steps (25.0%) decaying, 4 decays" in output
    assert table_row(output, "3,000") == ["3,000", "12.3M", "1.00e-04", "300", "yes", "always"]


def test_the_two_bad_examples_are_named(preview) -> None:
    output = preview(*FOUR, "scheduler.decay_frac=0.1", "checkpoint.interval=2000")
    assert "warning: scheduler: 1,000 = 100 + 200 + 300 + 400 of 4,000 steps (25.0%) are spent decaying" in output
    assert "note: checkpoint.interval=2000: misses 2 of 4 milestones (1000, 3000), 50% of the decayed" in output
    assert table_row(output, "3,000")[-5:] == ["yes,", "off", "interval", "2000", "always"]
    unsaved = preview(*FOUR, "checkpoint.enable=false")
    assert "warning: checkpoint.enable=false: 3 of 4 milestones" in unsaved
    assert "NO (checkpoint.enable=false)" in unsaved


def test_snapshots(preview) -> None:
    output = preview(*FOUR, "scheduler.decay_steps=290", "checkpoint.at_lr=[1.005e-3]")
    # The line falls by 1e-5 a step from 0.003: to 0.001 within 200.
    assert table_row(output, "910") == ["910", "3.73M", "1.00e-03", "0.001005"]
    assert "Snapshots" not in preview("training.steps=100")


@pytest.mark.parametrize(
    "choice", ["constant", "cosine", "inverse_sqrt", "linear", "megatron", "sgdr", "wsd", "wsd_adaptive"]
)
def test_every_schedule_has_a_preview(preview, choice: str) -> None:
    output = preview(f"scheduler={choice}")
    assert "warmup" in output
    assert "no warnings" in output


def test_tokens_count_the_global_batch(preview) -> None:
    assert "400 steps of 16,384 tokens" in preview("training.global_batch_size=16")
    fsdp = ["parallelism=fsdp", "--world-size", "8"]
    assert "400 steps of 32,768 tokens" in preview(*fsdp)
    assert "400 steps of 65,536 tokens" in preview(*fsdp, "training.global_batch_size=64")


def test_csv_holds_every_step(preview, tmp_path: Path) -> None:
    changes = "scheduler.weight_decay_incr_style=cosine scheduler.end_weight_decay=0.2"
    preview("training.steps=50", "--csv", "s.csv", "--compare", changes)
    rows = list(csv.DictReader((tmp_path / "s.csv").open()))
    assert len(rows) == 100
    for overrides, part in ((["training.steps=50"], rows[:50]), (["training.steps=50", *changes.split()], rows[50:])):
        schedule = build_schedule(compose_run(overrides).scheduler)
        for step, row in enumerate(part, start=1):
            assert (int(row["step"]), int(row["tokens"])) == (step, step * 4096)
            assert float(row["lr"]) == schedule.lr(step)
            assert float(row["weight_decay"]) == schedule.weight_decay(step)
            assert row["phase"] == schedule.phase(step).value


@pytest.mark.parametrize(
    "compare", [[], ["--compare", "scheduler=constant"], ["--compare", "training.global_batch_size=8"]]
)
def test_the_picture(preview, tmp_path: Path, compare: list[str]) -> None:
    output = preview("training.steps=100", *compare)
    assert "written: schedule.png" in output
    picture = imread(tmp_path / "schedule.png")
    assert picture.shape[:2] == (700, 1200)
    assert len(set(map(tuple, picture.reshape(-1, picture.shape[2])[::7]))) > 10  # something is drawn
    assert ("Compared" in output) == bool(compare)


def test_a_curve_has_every_corner_of_a_long_plan() -> None:
    plan = plan_run(["training.steps=1000000", "scheduler.checkpoints_frac=[0.33333,1]"], label="x")
    steps = plan.drawn_steps()
    assert len(steps) < 5000
    assert {1, 333_330, 333_331, 1_000_000} <= set(steps)


def test_what_the_run_would_refuse_is_refused(preview, tmp_path: Path) -> None:
    assert "error: scheduler.checkpoints=[90, 30]: milestones must be" in preview(
        "scheduler.checkpoints=[90,30]", code=1
    )
    assert "error: training.stepz: unknown key, did you mean steps?" in preview("training.stepz=3", code=1)
    assert "error: nowhere/s.csv: cannot be written" in preview("--csv", "nowhere/s.csv", code=1)
    assert "use parallelism=fsdp" in preview("--world-size", "2", code=1)


def test_a_recipe_of_ones_own(preview, tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    recipe = "# @package _global_\ndefaults:\n  - override /scheduler: constant\ntraining:\n  steps: 77\n"
    (tmp_path / "mine" / "experiment" / "short.yaml").write_text(recipe)
    assert "77 steps of 4,096 tokens" in preview("--config-dir", "mine", "+experiment=short")


def test_compared_overrides_replace_a_group_and_what_it_was_given() -> None:
    base = ["training.steps=9", "scheduler=wsds", "scheduler.decay_frac=0.1", "+experiment=a"]
    assert overlaid(base, ["scheduler=constant"]) == ["training.steps=9", "+experiment=a", "scheduler=constant"]
    assert overlaid(base, ["scheduler.decay_frac=0.2"])[-2:] == ["+experiment=a", "scheduler.decay_frac=0.2"]
    assert "scheduler=wsds" in overlaid(base, ["scheduler.decay_frac=0.2"])


def test_no_torch_is_loaded() -> None:
    code = "import sys, molgen_pretrain.tools.schedule as tool; tool.main([]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0
