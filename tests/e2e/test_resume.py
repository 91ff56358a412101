"""Killed, stopped, continued: the losses are those of the run that nobody touched."""

import random
import signal

import pytest

EXACT = ("loss", "grad_norm", "lr", "epoch", "tokens", "sequences", "max_loss")


@pytest.mark.parametrize("processes", [0, 2])
def test_sigkill_at_a_random_step(app, faulty, tiny, request, processes: int) -> None:
    _, whole = request.getfixturevalue("whole_on_two" if processes else "whole")
    after = random.randint(3, 36)
    name = "run_name=killed"
    code, _, run = app.interrupt(*tiny, name, after_step=after, by=signal.SIGKILL, processes=processes)
    assert code != 0
    layout = ("parallelism=fsdp",) if processes else ()
    output, _ = faulty.run(*tiny, *layout, name, ranks=processes)
    assert "start: after step" in output or after <= 9  # the kill may come some steps late
    assert run.curve(*EXACT) == whole.curve(*EXACT), f"killed after step {after}"
    assert run.rows("validation")[40]["loss"] == whole.rows("validation")[40]["loss"]
    assert run.steps_saved() == whole.steps_saved()


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_and_ctrl_c_save_and_exit(app, faulty, tiny, whole, by: signal.Signals) -> None:
    _, whole_run = whole
    name = "run_name=stopped"
    code, output, run = app.interrupt(*tiny, name, after_step=10, by=by)
    assert code == 128 + by
    assert "Traceback" not in output
    assert f"signal {by.value}: stopping after this step" in output
    stopped_at = run.steps_saved()[-1]
    assert list(run.rows())[-1] == stopped_at
    assert run.facts["status"] == "stopped"
    output, _ = faulty.run(*tiny, name)
    assert f"start: after step {stopped_at}" in output
    assert run.curve(*EXACT) == whole_run.curve(*EXACT)
    assert run.facts["status"] == "finished"


def test_torchrun_and_ctrl_c(app, faulty, tiny, whole_on_two) -> None:
    _, whole_run = whole_on_two
    name = "run_name=stopped"
    _, output, run = app.interrupt(*tiny, name, after_step=10, by=signal.SIGINT, processes=2)
    stopped_at = run.steps_saved()[-1]
    assert 10 <= stopped_at < 40, output
    faulty.run(*tiny, "parallelism=fsdp", name, ranks=2)
    assert run.curve(*EXACT) == whole_run.curve(*EXACT)


def test_init_resume_from_another_run(faulty, tiny, whole) -> None:
    _, source = whole
    step_dir = source.root / "checkpoint" / "step-00000020"
    output, run = faulty.run(*tiny, "init=resume", f"init.from={step_dir}", "run_name=branch")
    assert f"start: after step 20 of {step_dir}" in output
    assert list(run.rows()) == list(range(21, 41))
    assert run.curve(*EXACT) == {s: v for s, v in source.curve(*EXACT).items() if s > 20}


def test_a_finished_run_started_again_trains_nothing_and_loses_nothing(faulty, tiny) -> None:
    short = (*tiny, "training.steps=4", "scheduler.checkpoints=[4]", "validation.enable=false", "run_name=short")
    faulty.run(*short)
    _, run = faulty.run(*short)
    assert list(run.rows()) == [1, 2, 3, 4]
    output, _ = faulty.run(*short[:-4], "training.steps=6", "scheduler.checkpoints=[6]", "run_name=short", code=1)
    assert "scheduler.on_resume=strict" in output
    assert "checkpoints: [4] -> [6]" in output
    output, run = faulty.run(
        *short[:-4], "training.steps=6", "scheduler.checkpoints=[6]", "scheduler.on_resume=override", "run_name=short"
    )
    assert list(run.rows()) == [1, 2, 3, 4, 5, 6]


def test_damage_falls_back_to_the_older_checkpoint(faulty, tiny) -> None:
    short = (*tiny, "training.steps=16", "scheduler.checkpoints=[16]", "validation.enable=false", "run_name=damaged")
    faulty.run(*short)
    _, run = faulty.run(*short)
    before = run.curve(*EXACT)
    shard = next((run.root / "checkpoint" / "step-00000016").glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    output, run = faulty.run(*short)
    assert shard.name in output
    assert "start: after step 8" in output
    assert run.curve(*EXACT) == before


def test_kills_within_background_saves_leave_the_weights_of_a_run_that_saves_in_the_foreground(
    faulty, tiny, whole
) -> None:
    """At the first file, the manifest and after the rename; the weights are those of saves in the foreground."""
    _, untouched = whole
    options = (*tiny, "checkpoint.async_mode=async", "run_name=killed")
    for sync, committed in ((1, []), (7 + 5, [8]), (7 + 7, [8, 16, 20])):  # seven of each save
        fault = ("killed_in_background_save", {"sync": sync})
        _, run = faulty.run(*options, faults=[fault], code=-signal.SIGKILL)
        assert run.steps_saved() == committed
    output, run = faulty.run(*options)
    assert "start: after step 20 of" in output
    assert run.curve(*EXACT) == untouched.curve(*EXACT)
    assert run.steps_saved() == untouched.steps_saved()
    for step in run.steps_saved():
        mine, theirs = (r.root / "checkpoint" / f"step-{step:08d}" / "rank-00000.safetensors" for r in (run, untouched))
        assert mine.read_bytes() == theirs.read_bytes()
    stalls = {step for step, row in run.rows().items() if step > 20 and row["checkpoint_stall_seconds"]}
    assert stalls == {25, 33}


def test_deterministic_changes_no_bit_on_a_cpu(faulty, tiny, whole) -> None:
    _, untouched = whole
    _, run = faulty.run(*tiny, "training.deterministic=true")
    assert run.curve(*EXACT) == untouched.curve(*EXACT)
