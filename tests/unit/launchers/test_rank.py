"""A job's ranks: where they find each other, and the word they leave about the end."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from submitit import LocalExecutor

from molgen_pretrain.launchers.rank import RankTask

PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def test_the_ranks_of_a_local_job_agree_on_where_they_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PLACE:
        monkeypatch.delenv(name, raising=False)
    script = tmp_path / "entry.py"
    script.write_text(
        "import json, os, pathlib\n"
        f"place = {{name: os.environ[name] for name in {PLACE}}}\n"
        f"pathlib.Path({str(tmp_path)!r}, 'rank' + place['RANK']).write_text(json.dumps(place))\n"
    )
    executor = LocalExecutor(tmp_path / "jobs")
    executor.update_parameters(tasks_per_node=2, timeout_min=1)
    job = executor.submit(RankTask(runpy.run_path, str(script), None, tmp_path / "outcome.json"))
    job.wait()
    first, second = (json.loads((tmp_path / f"rank{rank}").read_text()) for rank in (0, 1))
    assert first == {**second, "RANK": "0", "LOCAL_RANK": "0"}
    assert (second["RANK"], second["LOCAL_RANK"], second["WORLD_SIZE"]) == ("1", "1", "2")
    assert (second["LOCAL_WORLD_SIZE"], second["MASTER_ADDR"]) == ("2", "127.0.0.1")
    assert 1024 < int(second["MASTER_PORT"]) < 65536
    assert json.loads((tmp_path / "outcome.json").read_text()) == {"state": "finished", "detail": ""}


def _run(script: str, tmp_path: Path, **env: str) -> tuple[int, dict[str, str], str]:
    """One rank whose entry is `script`; returns its exit code, the outcome and what it prints."""
    file = tmp_path / "entry.py"
    file.write_text(script)
    outcome = tmp_path / "outcome.json"
    program = (
        "import runpy, sys\nfrom pathlib import Path\nfrom molgen_pretrain.launchers.rank import RankTask\n"
        "RankTask(runpy.run_path, sys.argv[1], None, Path(sys.argv[2]))()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(file), str(outcome)],
        env={**os.environ, "SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "4711", **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, json.loads(outcome.read_text()) if outcome.exists() else {}, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("script", "code", "state", "detail"),
    [
        ("raise SystemExit(0)", 0, "finished", ""),
        ("raise SystemExit(1)", 1, "failed", "rank 0: exit code 1"),
        ("raise SystemExit('no data')", 1, "failed", "rank 0: exit code 1"),
        ("raise RuntimeError('no data')", 1, "failed", "rank 0: RuntimeError: no data"),
        ("raise SystemExit(143)", 143, "stopped", "stopped by signal 15"),
    ],
)
def test_the_outcome_and_the_exit_code_say_how_the_run_ended(
    script: str, code: int, state: str, detail: str, tmp_path: Path
) -> None:
    (tmp_path / "outcome.json").write_text("of the try before this one")
    found, outcome, output = _run(script, tmp_path)
    assert (found, outcome) == (code, {"state": state, "detail": detail}), output


def test_a_rank_that_fails_leaves_its_word_and_rank_0_keeps_it(tmp_path: Path) -> None:
    """When rank 1 fails the others are stopped, which is not how the job ended."""
    outcome = tmp_path / "outcome.json"
    failed = {"state": "failed", "detail": "rank 1: exit code 1"}
    script = f"open({str(outcome)!r}, 'w').write({json.dumps(failed)!r})\nraise SystemExit(143)"
    assert _run(script, tmp_path)[1] == failed
    assert _run("raise SystemExit(1)", tmp_path, SUBMITIT_LOCAL_GLOBALID="1")[1] == failed


def test_a_signal_before_the_entry_has_handlers_stops_the_rank(tmp_path: Path) -> None:
    script = "import os, signal, time\nos.kill(os.getpid(), signal.SIGUSR2)\ntime.sleep(60)"
    code, outcome, output = _run(script, tmp_path)
    assert (code, outcome) == (140, {"state": "stopped", "detail": "stopped by signal 12"}), output


def test_several_nodes_meet_on_the_first_at_the_port_of_the_script(tmp_path: Path) -> None:
    place: dict[str, Any] = {
        "SUBMITIT_EXECUTOR": "slurm",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "gpu[03-04],big1",
        "SLURM_JOB_NUM_NODES": "3",
        "SLURM_NTASKS": "12",
        "SLURM_PROCID": "9",
        "SLURM_LOCALID": "1",
        "MASTER_PORT": "29999",
    }
    script = f"import os\nprint(*(os.environ[name] for name in {PLACE}))\n"
    code, outcome, output = _run(script, tmp_path, **place)
    assert (code, output.split()) == (0, ["9", "1", "12", "4", "gpu03", "29999"])
    assert outcome == {}  # rank 0's to say
