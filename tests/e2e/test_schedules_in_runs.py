"""Every update of a real run has the learning rate and weight decay of the pure function, resumed or not.

Runs happen inside the test process, many of them in the time that one start through the command line takes.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from molgen_pretrain.config.plain import build_schedule, to_run_config
from molgen_pretrain.config.preflight import preflight
from molgen_pretrain.config.store import conf_dir, register
from molgen_pretrain.config.validate import validate
from molgen_pretrain.errors import UserError
from molgen_pretrain.schedules import WSD, Schedule, WSDAdaptive, decay_crossings

STEPS = 14
COMMON = (
    f"training.steps={STEPS}",
    "training.seq_len=64",
    "training.global_batch_size=-1",
    "training.local_batch_size=2",
    "validation.enable=false",
    "checkpoint.interval=1",
    "checkpoint.keep_latest_k=0",
    "checkpoint.hf_export=never",
    "optimizer.group_preset=by_type",
    "optimizer.by_type.embeddings.lr_scale=0.5",
    "optimizer.by_type.norms.wd_scale=0",
    "scheduler.end_weight_decay=0.3",
    "scheduler.weight_decay_incr_style=linear",
    "scheduler.checkpoints=[]",
)
SCHEDULES = {
    "wsds": ("scheduler.checkpoints=[6,14]", "scheduler.decay_steps=3", "scheduler.warmup_steps=2"),
    "wsd": ("scheduler.decay_steps=5", "scheduler.blend_steps=2", "scheduler.warmup_steps=2"),
    "sgdr": ("scheduler.cycle_length=4", "scheduler.cycle_mult=1.5"),
    "cosine": ("scheduler.warmup_steps=3",),
    "inverse_sqrt": ("scheduler.warmup_steps=3",),
    "megatron": ("scheduler.lr_decay_style=linear",),
}


class Runs:
    """Starts runs in one folder, in this process."""

    def __init__(self, folder: Path, cache: Path, tiny: tuple[str, ...]) -> None:
        self.folder = folder
        self.overrides = [*(o for o in tiny if not o.startswith("scheduler.")), f"paths.cache={cache}"]
        self.overrides.append(f"paths.runs={folder}")
        register()

    def start(self, name: str, scheduler: str, *overrides: str) -> tuple[Path, Schedule]:
        """Train to the end; the run directory and the schedule of its config."""
        from molgen_pretrain.training.runner import run

        common = [o for o in COMMON if scheduler == "wsds" or not o.startswith("scheduler.checkpoints")]
        chosen = [*self.overrides, *common, f"scheduler={scheduler}", f"run_name={name}", *overrides]
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            composed = compose("config", overrides=chosen)
        cfg = to_run_config(composed)
        validate(cfg, 1)
        run(cfg, preflight(cfg), resolved_yaml=OmegaConf.to_yaml(composed, resolve=True), overrides=chosen)
        return self.folder / name, build_schedule(cfg.scheduler)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, cache: Path, tiny: tuple[str, ...]) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), cache, tiny)


@pytest.fixture(scope="module")
def finished(runs: Runs) -> Callable[[str], tuple[Path, Schedule]]:
    """A finished run of each schedule, made when first asked for."""
    made: dict[str, tuple[Path, Schedule]] = {}

    def get(name: str) -> tuple[Path, Schedule]:
        if name not in made:
            made[name] = runs.start(f"whole-{name}", name, *SCHEDULES[name])
        return made[name]

    return get


def stored_groups(run: Path, step: int) -> dict[str, dict]:
    """Parameter groups as update `step` ran with them: a checkpoint is taken right after it."""
    optimizer = json.loads((run / "checkpoint" / f"step-{step:08d}" / "optimizer.json").read_text())
    return {group["name"]: group for group in optimizer["param_groups"]}


def rows(run: Path) -> dict[int, dict]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in found] == list(range(1, len(found) + 1))
    return {row["step"]: row for row in found}


def assert_follows(run: Path, schedule: Schedule, steps: range) -> None:
    logged = rows(run)
    for step in steps:
        lr, weight_decay = schedule.lr(step), schedule.weight_decay(step)
        assert logged[step]["lr"] == lr
        assert logged[step]["weight_decay"] == weight_decay
        assert logged[step]["phase"] == schedule.phase(step).value
        groups = stored_groups(run, step)
        assert set(groups) >= {"embeddings", "attention", "feed_forward", "norms"}
        for name, group in groups.items():
            lr_scale = 0.5 if name == "embeddings" else 1.0
            assert group["lr"] == lr * lr_scale == logged[step][f"lr/{name}"], (step, name)
            assert group["weight_decay"] == weight_decay * (0 if name == "norms" else 1), (step, name)


def cut_back(run: Path, name: str, step: int) -> None:
    """A copy of the run as it was when it had just saved `step`."""
    copy = run.parent / name
    shutil.copytree(run, copy)
    for folder in (copy / "checkpoint").iterdir():
        if int(folder.name.partition("-")[2]) > step:
            shutil.rmtree(folder)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_update_of_every_group_follows_the_pure_function(finished, name: str) -> None:
    run, schedule = finished(name)
    assert_follows(run, schedule, range(1, STEPS + 1))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_strict_resume_goes_on_as_if_nothing_had_happened(runs, finished, name: str) -> None:
    whole, schedule = finished(name)
    at = {"wsds": 5, "wsd": 10, "sgdr": 4, "cosine": 2, "inverse_sqrt": 13, "megatron": 7}[name]
    cut_back(whole, f"resumed-{name}", at)
    resumed, _ = runs.start(f"resumed-{name}", name, *SCHEDULES[name])
    assert_follows(resumed, schedule, range(1, STEPS + 1))
    assert [row["loss"] for row in rows(resumed).values()] == [row["loss"] for row in rows(whole).values()]


def test_strict_names_every_field_that_differs(runs, finished) -> None:
    whole, _ = finished("cosine")
    cut_back(whole, "strict", 5)
    with pytest.raises(UserError) as caught:
        runs.start("strict", "cosine", *SCHEDULES["cosine"], "optimizer.lr=1e-3", "optimizer.by_type.norms.lr_scale=2")
    message = str(caught.value)
    assert "lr_max: 0.003 -> 0.001" in message
    assert "optimizer group norms, lr_scale: 1.0 -> 2.0" in message
    assert json.loads((runs.folder / "strict" / "run.json").read_text())["status"] == "failed"


def test_override_takes_the_config_for_schedule_and_groups(runs, finished) -> None:
    whole, old = finished("cosine")
    cut_back(whole, "override", 5)
    changes = ("optimizer.lr=1e-3", "optimizer.by_type.attention.lr_scale=0.25", "scheduler.on_resume=override")
    run, new = runs.start("override", "cosine", *SCHEDULES["cosine"], *changes)
    assert rows(run)[5]["lr"] == old.lr(5)
    for step in range(6, STEPS + 1):
        groups = stored_groups(run, step)
        assert groups["attention"]["lr"] == 0.25 * new.lr(step)
        assert groups["feed_forward"]["lr"] == new.lr(step) == rows(run)[step]["lr"]


def test_use_checkpoint_takes_the_stored_schedule_and_groups(runs, finished) -> None:
    whole, old = finished("cosine")
    cut_back(whole, "stored", 5)
    changes = ("optimizer.lr=1e-3", "optimizer.by_type.attention.lr_scale=0.25", "scheduler.on_resume=use_checkpoint")
    run, _ = runs.start("stored", "cosine", *SCHEDULES["cosine"], *changes)
    assert_follows(run, old, range(1, STEPS + 1))


def test_extending_the_stable_phase_mid_run(runs, finished) -> None:
    whole, schedule = finished("wsd")
    assert isinstance(schedule, WSD)
    stable = STEPS - 5 - 2
    cut_back(whole, "extended", 8)
    longer = (f"training.steps={STEPS + 4}", f"scheduler.stable_steps={stable + 4}", "scheduler.on_resume=override")
    run, new = runs.start("extended", "wsd", *SCHEDULES["wsd"], *longer)
    # What the settings build is what extend_stable makes of a plan with its stable phase in steps.
    extended = replace(schedule, stable_steps=stable, total_steps=STEPS + 4).extend_stable(4)
    assert [new.lr(step) for step in range(STEPS + 6)] == [extended.lr(step) for step in range(STEPS + 6)]
    assert_follows(run, new, range(9, STEPS + 5))
    assert rows(run)[STEPS + 4]["lr"] == new.lr_min


def test_starting_the_decay_now(runs, finished) -> None:
    whole, schedule = finished("wsd")
    assert isinstance(schedule, WSD)
    cut_back(whole, "decaying", 5)
    now = ("training.steps=8", "scheduler.stable_steps=3", "scheduler.decay_steps=3", "scheduler.on_resume=override")
    run, new = runs.start("decaying", "wsd", *SCHEDULES["wsd"], *now)
    begun = schedule.begin_decay(5, 3)
    assert [new.lr(step) for step in range(12)] == [begun.lr(step) for step in range(12)]
    assert_follows(run, new, range(6, 9))
    assert rows(run)[8]["lr"] == new.lr_min


def test_adaptive_decay_is_decided_once_and_reproduced(runs) -> None:
    # A threshold above any improvement: the decay starts as soon as the window is full.
    adaptive = (
        "scheduler.window=4", "scheduler.threshold=10", "scheduler.min_stable_steps=2", "scheduler.decay_steps=4",
        "scheduler.warmup_steps=2",
    )  # fmt: skip
    whole, schedule = runs.start("adaptive", "wsd_adaptive", *adaptive)
    assert isinstance(schedule, WSDAdaptive)
    decided = schedule.with_decay_start(4)
    assert_follows(whole, schedule, range(1, 5))
    assert_follows(whole, decided, range(5, 9))
    assert max(rows(whole)) == 8  # a finished model: the steps that are left would run at lr_min
    assert "the decay begins after step 4" in (whole / "runtime.log").read_text()
    assert schedule.lr(6) != decided.lr(6)
    for at in (2, 4, 6):  # before the decision, right after it, and in the decay
        cut_back(whole, f"adaptive-{at}", at)
        resumed, _ = runs.start(f"adaptive-{at}", "wsd_adaptive", *adaptive)
        assert_follows(resumed, decided, range(5, 9))
        assert [row["loss"] for row in rows(resumed).values()] == [row["loss"] for row in rows(whole).values()]


def test_snapshots_where_a_decay_crosses_a_learning_rate(runs) -> None:
    options = ("checkpoint.interval=100", "checkpoint.keep_latest_k=1", "checkpoint.at_lr=[2e-3,1e-3]")
    run, schedule = runs.start("snapshots", "cosine", *SCHEDULES["cosine"], *options)
    crossings = decay_crossings(schedule, [2e-3, 1e-3], STEPS)
    assert len(crossings) == 2
    saved = {int(p.name.partition("-")[2]) for p in (run / "checkpoint").iterdir()}
    assert saved == {*crossings, STEPS}
    for step, threshold in crossings.items():
        assert schedule.lr(step) <= threshold < schedule.lr(step - 1)


def test_beta2_of_the_decay(runs) -> None:
    run, schedule = runs.start("beta2", "wsd", *SCHEDULES["wsd"], "scheduler.decay_beta2=0.99")
    for step in range(1, STEPS + 1):
        expected = 0.99 if schedule.phase(step).value == "decay" else 0.95
        assert stored_groups(run, step)["attention"]["betas"] == [0.9, expected], step


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "muon"])
def test_each_optimizer_trains_and_resumes_bit_for_bit(runs, optimizer: str) -> None:
    options = (f"optimizer={optimizer}", "scheduler.min_lr=0")
    whole, _ = runs.start(f"whole-{optimizer}", "cosine", *options)
    losses = [row["loss"] for row in rows(whole).values()]
    assert losses[-1] < losses[0]
    cut_back(whole, f"resumed-{optimizer}", 6)
    resumed, _ = runs.start(f"resumed-{optimizer}", "cosine", *options)
    assert [row["loss"] for row in rows(resumed).values()] == losses
