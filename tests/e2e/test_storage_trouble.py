"""Storage that fails for a while costs saves; storage that fails for good ends the run with a clear word."""

import signal
import subprocess
from pathlib import Path

import pytest

EXACT = ("loss", "grad_norm", "lr", "epoch", "tokens", "sequences", "max_loss")
GOES_ON = "the run goes on and saves again at the next checkpoint"


def at(step: int, phase: str, action: str, **arguments):
    return ("at", {"step": step, "phase": phase, "action": action, **arguments})


def last_shard(run) -> bytes:
    return (run.root / "checkpoint" / "step-00000040" / "rank-00000.safetensors").read_bytes()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_folder_that_refuses_costs_saves_and_not_the_run(faulty, tiny, whole, mode: str) -> None:
    """The saves of steps 16 and 20 fail, 24 works."""
    _, untouched = whole
    folder = str(faulty.app.folder / "runs" / "refused" / "checkpoint")
    faults = [at(12, "forward", "blocked", folder=folder), at(22, "forward", "unblocked", folder=folder)]
    options = (*tiny, f"checkpoint.async_mode={mode}", "run_name=refused")
    output, run = faulty.run(*options, faults=faults)
    assert "Traceback" not in output
    assert run.log.count(GOES_ON) == 2
    assert "step 16 was not saved" in run.log
    assert "step 20 was not saved" in run.log
    assert run.log.index("saved ") < run.log.index(GOES_ON) < run.log.rindex("step-00000024: ")
    assert run.steps_saved() == [32, 40]
    assert run.curve(*EXACT) == untouched.curve(*EXACT)
    assert list(run.rows("validation")) == [20, 40]
    assert last_shard(run) == last_shard(untouched)
    stalls = {step: row["checkpoint_stall_seconds"] for step, row in run.rows().items()}
    assert {step for step, seconds in stalls.items() if seconds} == {9, 17, 21, 25, 33}


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_too_many_failures_in_a_row_end_the_run(faulty, tiny, mode: str) -> None:
    folder = str(faulty.app.folder / "runs" / "ended" / "checkpoint")
    faults = [at(12, "forward", "blocked", folder=folder)]
    options = (*tiny, f"checkpoint.async_mode={mode}", "checkpoint.max_failures=2", "run_name=ended")
    output, run = faulty.run(*options, faults=faults, code=1)
    assert "Traceback" not in output
    [said] = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "checkpoint.max_failures=2: so many saves in a row failed" in said
    assert run.log.count(GOES_ON) == 1
    assert run.facts["status"] == "failed"
    # In the background the failure of step 20 shows when the next save is due.
    assert list(run.rows()) == list(range(1, (20 if mode == "sync" else 24) + 1))


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_last_save_has_to_work(faulty, tiny, whole, mode: str) -> None:
    _, untouched = whole
    folder = faulty.app.folder / "runs" / "last" / "checkpoint"
    options = (*tiny, f"checkpoint.async_mode={mode}", "run_name=last")
    blocked = at(35, "forward", "blocked", folder=str(folder))
    asked = at(37, "forward", "signalled", number=int(signal.SIGTERM))
    output, run = faulty.run(*options, faults=[blocked, asked], code=1)
    assert "error: step 37, the last, could not be saved" in output
    assert "(run_name=last) the run goes on from what was saved" in output
    assert "Traceback" not in output
    assert run.facts["status"] == "failed"
    folder.unlink()
    folder.with_name("aside").rename(folder)
    output, run = faulty.run(*options)
    assert "start: after step 32" in output
    assert run.curve(*EXACT) == untouched.curve(*EXACT)
    assert run.facts["status"] == "finished"


def test_a_full_disk_loses_no_row(faulty, tiny, whole, small_disk: Path) -> None:
    """Checkpoints, exports, metrics.jsonl and the log are on it. It is full from step 12 to 22."""
    _, untouched = whole
    disk = str(small_disk)
    faults = [at(12, "forward", "filled", folder=disk), at(22, "forward", "emptied", folder=disk)]
    sinks = ("checkpoint.hf_export=milestones", "metrics.tensorboard=true")
    output, _ = faulty.run(*tiny, f"paths.runs={disk}", "run_name=full", *sinks, faults=faults)
    run = type(untouched)(small_disk / "full")
    assert "metrics: jsonl: OSError" in output
    assert output.count("runtime.log may lack lines from now on") == 1
    assert output.count(GOES_ON) == 2
    assert "Logging error" not in output
    assert run.curve(*EXACT) == untouched.curve(*EXACT)
    assert list(run.rows("validation")) == [20, 40]
    assert run.steps_saved() == [32, 40]
    assert last_shard(run) == last_shard(untouched)
    assert run.facts["status"] == "finished"


def test_an_export_that_fails_costs_itself_until_it_is_the_last(faulty, tiny) -> None:
    short = (*tiny, "training.steps=8", "scheduler.checkpoints=[4,8]", "validation.enable=false", "run_name=export")
    hf = faulty.app.folder / "runs" / "export" / "hf"
    hf.parent.mkdir(parents=True)
    hf.write_text("in the way")
    output, run = faulty.run(*short, "checkpoint.hf_export=milestones", code=1)
    assert "no hf export of step 4" in run.log
    assert list(run.rows()) == list(range(1, 9))
    assert "error: step 8, the last, could not be exported" in output
    hf.unlink()
    faulty.run(*short, "checkpoint.hf_export=milestones")
    assert (hf / "step-00000008" / "model.safetensors").exists()
    assert run.facts["status"] == "finished"


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no small file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
