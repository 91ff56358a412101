"""Signals at every kind of moment: one save and a documented exit code, and a resume that nobody can tell."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from molgen_pretrain.config.schema import SAMPLE_DIR

EXACT = ("loss", "grad_norm", "lr", "epoch", "tokens", "sequences", "max_loss")


def at(step: int, phase: str, number: int, rank: int = 0):
    return ("at", {"step": step, "phase": phase, "action": "signalled", "number": number, "rank": rank})


def validation_losses(run) -> dict[int, float]:
    return {step: row["loss"] for step, row in run.rows("validation").items()}


def test_every_signal_at_every_phase(faulty, tiny, whole) -> None:
    """One run through ten processes, each ended at another place, equals the run that nobody touched."""
    _, untouched = whole
    options = (*tiny, "run_name=stopped", "metrics.tensorboard=true")

    def ended(*faults, by: int, saved: int) -> str:
        code = -by if by == signal.SIGKILL else 128 + by
        output, run = faulty.run(*options, faults=faults, code=code)
        assert run.steps_saved()[-1] == saved
        assert "Traceback" not in output
        if by != signal.SIGKILL:
            assert run.facts["status"] == "stopped"
            assert list(run.rows())[-1] == saved
            assert f"stopped by signal {by} after step {saved}; started again (run_name=stopped) it goes on" in output
        return output

    output = ended(at(5, "forward", signal.SIGTERM), by=signal.SIGTERM, saved=5)
    assert "signal 15: stopping after this step; once more to exit at once" in output
    ended(at(9, "data", signal.SIGINT), by=signal.SIGINT, saved=9)
    ended(at(12, "optimizer", signal.SIGUSR1), by=signal.SIGUSR1, saved=13)
    ended(at(16, "checkpoint", signal.SIGUSR2), by=signal.SIGUSR2, saved=17)
    # Before and in the validation of step 20, then in that which makes up for it, which is then done once only.
    ended(at(20, "backward", signal.SIGTERM), by=signal.SIGTERM, saved=20)
    ended(at(20, "validation", signal.SIGUSR1), by=signal.SIGUSR1, saved=20)
    run = faulty.app.find(options)
    assert not run.rows("validation")
    ended(at(22, "forward", signal.SIGKILL), by=signal.SIGKILL, saved=20)
    assert validation_losses(run) == {20: validation_losses(untouched)[20]}
    ended(at(40, "validation", signal.SIGTERM), by=signal.SIGTERM, saved=40)
    assert list(run.rows("validation")) == [20]
    assert not (run.root / "hf").exists()
    output, run = faulty.run(*options)
    assert run.facts["status"] == "finished"
    assert (run.root / "hf" / "step-00000040" / "model.safetensors").exists()
    assert run.curve(*EXACT) == untouched.curve(*EXACT)
    assert validation_losses(run) == validation_losses(untouched)
    [mine, theirs] = [r.root / "checkpoint" / "step-00000040" / "rank-00000.safetensors" for r in (run, untouched)]
    assert mine.read_bytes() == theirs.read_bytes()
    lines = (run.root / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 40 + 2


def test_a_signal_to_one_of_two_ranks_stops_both(faulty, tiny, whole_on_two) -> None:
    _, untouched = whole_on_two
    options = (*tiny, "parallelism=fsdp", "run_name=stopped")
    output, run = faulty.run(*options, ranks=2, faults=[at(6, "backward", signal.SIGTERM, rank=1)], code=143)
    assert run.steps_saved() == [6]
    assert output.count("stopped by signal 15 after step 6") == 1
    # The first rank is in its validation already.
    output, run = faulty.run(*options, ranks=2, faults=[at(20, "validation", signal.SIGUSR1, rank=1)], code=138)
    assert run.steps_saved()[-1] == 20
    assert not run.rows("validation")
    _, run = faulty.run(*options, ranks=2)
    assert run.curve(*EXACT) == untouched.curve(*EXACT)
    assert validation_losses(run) == validation_losses(untouched)


def test_a_run_without_checkpoints_is_not_given_one_by_a_signal(faulty, tiny) -> None:
    options = (*tiny, "checkpoint.enable=false", "validation.enable=false", "run_name=none")
    output, run = faulty.run(*options, faults=[at(3, "forward", signal.SIGTERM)], code=143)
    assert "checkpoint.enable=false: step 3 is not saved" in output
    assert not (run.root / "checkpoint").exists()


def test_a_second_signal_exits_at_once_and_loses_only_steps(faulty, tiny) -> None:
    options = (*tiny, "validation.enable=false", "run_name=twice")
    sleep = ("at", {"step": 11, "phase": "forward", "action": "sleeping", "seconds": 60})
    started = faulty.start(*options, faults=[sleep])
    wait_for(lambda: 10 in rows(faulty.app.folder / "runs" / "twice"))
    os.kill(started.processes[0].pid, signal.SIGINT)
    time.sleep(0.7)
    assert started.processes[0].exitcode is None
    began = time.monotonic()
    os.kill(started.processes[0].pid, signal.SIGTERM)
    codes, output = started.end(timeout=20)
    assert codes == [128 + signal.SIGTERM]
    assert time.monotonic() - began < 10
    assert "signal 2: stopping after this step; once more to exit at once" in output
    assert faulty.app.find(options).steps_saved() == [8]


def test_a_signal_before_the_first_step_ends_at_once(faulty, tiny) -> None:
    building = "molgen_pretrain.training.runner.spread_model"
    loading = ("before", {"target": building, "action": "signalled", "number": signal.SIGTERM})
    output, run = faulty.run(*tiny, "run_name=early", faults=[loading], code=143)
    assert output.count("error: ended by signal 15, no step was under way") == 1
    assert "Traceback" not in output
    assert run.facts["status"] == "stopped"
    assert not run.steps_saved()


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_in_the_one_time_pass_ends_it_with_its_processes(faulty, tiny, tmp_path: Path, by: int) -> None:
    lines = b"".join(path.read_bytes() for path in sorted((SAMPLE_DIR / "train").glob("*.jsonl")))
    data = tmp_path / "long.jsonl"
    data.write_bytes(lines * 12)
    options = (*tiny, f"data.train_path={data}", f"paths.cache={tmp_path / 'cache'}", "data.index_processes=2")
    started = faulty.start(*options)
    pid = started.processes[0].pid
    wait_for(lambda: len(session_of(pid)) >= 3)
    os.kill(pid, by)
    codes, output = started.end(timeout=20)
    assert codes == [128 + by]
    assert f"error: ended by signal {by}, no step was under way" in output
    assert not (faulty.app.folder / "runs").exists()
    wait_for(lambda: not session_of(pid))


def rows(root: Path) -> list[int]:
    try:
        return [int(line.split(b'"step":')[1].split(b",")[0]) for line in (root / "metrics.jsonl").open("rb")]
    except (FileNotFoundError, IndexError):
        return []


def session_of(leader: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(session) == leader and state != "Z":
                found.append(int(entry.name))
    return found


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@pytest.mark.parametrize("dead", [0, 1])
def test_a_rank_that_is_killed_ends_the_other_and_is_named_first(faulty, tiny, dead) -> None:
    options = (*tiny, "parallelism=fsdp", "checkpoint.interval=4", "run_name=lost")
    killed = ("at", {"step": 6, "phase": "backward", "action": "signalled", "number": signal.SIGKILL, "rank": dead})
    started = faulty.start(*options, ranks=2, faults=[killed])
    began = time.monotonic()
    codes, output = started.end()
    assert codes[dead] == -signal.SIGKILL
    assert codes[1 - dead] > 0
    assert time.monotonic() - began < 60
    errors = [line for line in output.splitlines() if "error" in line]
    assert errors[0].startswith(f"[rank {1 - dead}] error: rank {dead} (")
    # Of steps as short as these the report, ten a second, tells one of the last.
    told = rf"pid {started.processes[dead].pid}\) died at step [0-6], in [a-z -]+, by its last report"
    assert re.search(told, errors[0]), errors[0]
    assert "Traceback" not in output
    output, run = faulty.run(*options, ranks=2)
    assert "start: after step 4" in output
    assert run.facts["status"] == "finished"
