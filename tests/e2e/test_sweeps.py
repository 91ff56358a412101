"""Multiruns through the command line: points, shared trunks, failures, interruptions, repetition."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

STEPS = 40
FRACS = ("0.05", "0.1", "0.2", "0.4")
# One milestone; validation, a checkpoint interval and retention are at work inside the trunk too.
ONE_MILESTONE = ("scheduler.checkpoints=[]", "scheduler.checkpoints_frac=[1.0]", "checkpoint.keep_latest_k=1")
SWEEP = (*ONE_MILESTONE, "scheduler.decay_frac=" + ",".join(FRACS))


def weights(run: Path, step: int = STEPS) -> dict:
    return load_file(run / "hf" / f"step-{step:08d}" / "model.safetensors")


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def status(run: Path) -> str:
    return json.loads((run / "run.json").read_text())["status"]


def started(output: str) -> list[str]:
    return re.findall(r"\d+/\d+ (\S+): started", output)


@pytest.fixture(scope="module")
def swept(app_factory, tiny):
    """A trunk sweep over four decays and two lengths, killed in the middle, and run again. (outputs, sweep)"""
    app = app_factory("swept")
    command = ["-m", *tiny, *SWEEP, "hydra/sweeper=trunk", "run_name=trunk"]
    process = app.start(command)
    sweep = app.folder / "runs" / "trunk"
    deadline = time.monotonic() + 120
    while not list(sweep.glob("decay_frac=0.2/checkpoint/step-*")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    first = process.communicate()[0]
    second, _ = app.run(*command)
    third, _ = app.run(*command)
    return (first, second, third), sweep


def test_what_points_have_in_common_is_trained_once(swept) -> None:
    (first, *_), sweep = swept
    assert "4 points: 68 steps planned, 160 as independent runs: 57.5% saved" in first
    manifest = json.loads((sweep / "sweep.json").read_text())
    assert (manifest["planned_steps"], manifest["independent_steps"]) == (68, 160)
    for edge in manifest["edges"]:
        own = [r["step"] for r in rows(sweep / edge["folder"]) if r["kind"] == "train" and r["step"] > edge["start"]]
        assert own == list(range(edge["start"] + 1, edge["end"] + 1))


def test_a_killed_sweep_trains_what_is_missing_and_nothing_else(swept) -> None:
    (first, second, third), sweep = swept
    finished = set(re.findall(r"\d+/\d+ (\S+): finished", first))
    assert {"steps-0-24", "steps-24-32", "steps-32-36", "decay_frac=0.05", "decay_frac=0.1"} <= finished
    assert started(second) == ["decay_frac=0.2", "decay_frac=0.4"]
    assert started(third) == []
    assert "every point is finished" in third
    assert all(status(sweep / f"decay_frac={frac}") == "finished" for frac in FRACS)
    for name in ("report.html", "report.md", "report.png"):
        assert (sweep / name).stat().st_size > 1000
    assert "4 of 4" in (sweep / "report.md").read_text()


def test_points_of_a_trunk_are_those_of_runs_alone_bit_for_bit(swept, faulty_factory, tiny) -> None:
    """A point's directory, too, looks as if it had trained every step itself."""
    _, sweep = swept
    alone = faulty_factory("alone")
    for frac in FRACS:
        _, run = alone.run(*tiny, *ONE_MILESTONE, f"scheduler.decay_frac={frac}", f"run_name=frac-{frac}")
        point = sweep / f"decay_frac={frac}"
        ours, theirs = weights(point), weights(run.root)
        assert ours.keys() == theirs.keys()
        assert all(ours[name].equal(theirs[name]) for name in theirs)
        keys = ("kind", "step", "loss", "lr", "grad_norm", "tokens")
        assert [[r.get(k) for k in keys] for r in rows(point)] == [[r.get(k) for k in keys] for r in rows(run.root)]


def test_three_levels_of_wsd_are_those_of_runs_alone(app, faulty, tiny) -> None:
    """Total steps times decay_frac: the trunk of the long runs goes on where the short ones decay."""
    wsd = ("scheduler=wsd", "scheduler.warmup_steps=4", "scheduler.warmup_frac=null", "checkpoint.interval=40")
    swept = ("training.steps=20,40", "scheduler.decay_frac=0.2,0.4")
    # The milestones of WSDS are no setting of this schedule.
    base = [override for override in tiny if not override.startswith(("scheduler.", "training.steps"))]
    output, _ = app.run("-m", *base, *wsd, *swept, "hydra/sweeper=trunk", "run_name=levels")
    # To 12, then 8 for the short run's long decay; to 16 and 4 for its short one; to 24 + 16, to 32 + 8.
    assert "4 points: 68 steps planned, 120 as independent runs" in output
    for steps, frac in ((20, "0.4"), (40, "0.2")):
        name = f"steps={steps},decay_frac={frac}"
        _, run = faulty.run(
            *base, *wsd, f"training.steps={steps}", f"scheduler.decay_frac={frac}", f"run_name=alone-{steps}"
        )
        ours, theirs = weights(app.folder / "runs" / "levels" / name, steps), weights(run.root, steps)
        assert all(ours[key].equal(theirs[key]) for key in theirs)


def test_a_failed_point_ends_neither_the_sweep_nor_the_next_try(app, tiny) -> None:
    values = ("optimizer.lr=1e30,3e-3", "training.steps=6", "scheduler.checkpoints=[6]", "validation.enable=false")
    command = ["-m", *tiny, *values, "run_name=sweep"]
    output, _ = app.run(*command, code=1)
    sweep = app.folder / "runs" / "sweep"
    assert (status(sweep / "lr=1e+30"), status(sweep / "lr=0.003")) == ("failed", "finished")
    assert "error: lr=1e+30: failed (exit code 1): step 2: " in output
    assert "1 of 2 points did not finish; the same command trains what is missing, and nothing else" in output
    assert started(app.run(*command, code=1)[0]) == ["lr=1e+30"]


def test_ctrl_c_saves_and_the_same_command_goes_on(app, tiny) -> None:
    command = ["-m", *tiny, "training.seed=1,2", "run_name=sweep", "training.steps=400", "scheduler.checkpoints=[400]"]
    process = app.start(command)
    first = app.folder / "runs" / "sweep" / "seed=1"
    deadline = time.monotonic() + 120
    while not (first / "metrics.jsonl").exists() or len(rows(first)) < 3:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "error: ended by signal 2, the same command goes on with the sweep" in output
    assert (status(first), started(output)) == ("stopped", ["seed=1"])
    assert list(first.glob("checkpoint/step-*"))


def test_sweeps_started_at_the_same_second_share_nothing(app, tiny) -> None:
    """Two of one command: one of them trains. Another command: a folder of its own."""
    short = ("training.steps=4", "scheduler.checkpoints=[4]", "validation.enable=false")
    same, other = ["-m", *tiny, *short, "training.seed=1,2"], ["-m", *tiny, *short, "training.seed=3,4"]
    processes = [app.start(command) for command in (same, same, other)]
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    codes = [process.returncode for process in processes]
    assert codes[2] == 0
    assert sorted(codes[:2]) == [0, 1], outputs
    assert "is being trained by pid" in outputs[codes.index(1)]
    sweeps = list((app.folder / "runs").iterdir())
    assert len(sweeps) == 2
    for sweep in sweeps:
        for run in sweep.glob("seed=*"):
            assert [r["step"] for r in rows(run) if r["kind"] == "train"] == [1, 2, 3, 4]


def test_eight_ranks_and_two_runs_started_at_once_have_a_directory_each(faulty, tiny) -> None:
    short = ("training.steps=1", "scheduler.checkpoints=[1]", "scheduler.warmup_frac=null", "validation.enable=false")
    eight = (*short, "training.global_batch_size=8", "training.local_batch_size=1", "data.num_workers=0")
    together = [
        faulty.start(*tiny, *eight, "parallelism=ddp", ranks=8),
        faulty.start(*tiny, *short),
        faulty.start(*tiny, *short),
    ]
    for each in together:
        codes, output = each.end(120)
        assert set(codes) == {0}, output
    runs = list((faulty.app.folder / "runs").iterdir())
    assert len(runs) == 3
    assert sorted(json.loads((run / "run.json").read_text())["world_size"] for run in runs) == [1, 1, 8]


def test_mistakes_of_any_point_are_told_before_anything_is_trained(app, tiny) -> None:
    output, _ = app.run("-m", *tiny, "optimizer.lr=1e-3,-1", "training.local_batch_size=4,3", code=1)
    assert "local_batch_size=4,lr=-1: optimizer.lr=-1.0: must be positive" in output
    assert "local_batch_size=3,lr=0.001: training.global_batch_size=8: must be" in output
    assert not (app.folder / "runs").exists()
    (app.folder / "file").touch()
    output, _ = app.run("-m", *tiny, "training.seed=1,2", "paths.runs=file", code=1)
    assert "error: paths.runs=" in output
    assert "Traceback" not in output
    output, _ = app.run("-m", *tiny, "sweep.plan_only=true", "training.seed=1,2")
    assert "2 points: 80 steps" in output
    assert not (app.folder / "runs").exists()


def test_a_config_that_was_edited_meanwhile_is_no_continuation(app, tiny) -> None:
    own = app.folder / "mine" / "experiment"
    own.mkdir(parents=True)
    recipe = "# @package _global_\noptimizer:\n  lr: {lr}\n"
    (own / "mine.yaml").write_text(recipe.format(lr=1e-3))
    short = ("training.steps=4", "scheduler.checkpoints=[4]", "validation.enable=false")
    command = ["-m", "--config-dir", "mine", *tiny, *short, "+experiment=mine", "training.seed=1", "run_name=mine"]
    app.run(*command)
    (own / "mine.yaml").write_text(recipe.format(lr=2e-3))
    output, _ = app.run(*command, code=1)
    assert "was trained with another config: optimizer.lr: 0.001 -> 0.002; scheduler.lr_max: 0.001 -> 0.002" in output


def test_the_shipped_sweep_is_one_command(app) -> None:
    output, _ = app.run("-m", "+experiment=decay_frac_sweep", "sweep.plan_only=true")
    assert "4 points: 680 steps planned, 1,600 as independent runs: 57.5% saved" in output
