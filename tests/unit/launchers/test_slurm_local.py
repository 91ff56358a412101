"""The same jobs without Slurm: submitit starts them on this machine."""

import json
import os
import runpy
import signal
import threading
from pathlib import Path

import pytest

from molgen_pretrain.errors import UserError
from molgen_pretrain.launchers.jobs import Job, Outcome, State
from molgen_pretrain.launchers.slurm import SlurmJobs
from molgen_pretrain.launchers.slurm_settings import SlurmSettings
from molgen_pretrain.signals import EndAtOnce, Interrupted

TWO_AT_A_TIME = SlurmSettings(tasks_per_node=2, array_parallelism=2, poll_seconds=0.1)
NOTE = "import os; open(f'{note}-' + os.environ['RANK'], 'a').write(os.environ['WORLD_SIZE'])"
SLOWLY = "import time; time.sleep(0.7)\n" + NOTE
AFTER_TRUNK = "import os; assert os.path.exists(os.path.dirname('{note}') + '/trunk-0')\n" + NOTE
FAIL = "import sys; sys.exit(1)"
SAVE = """
import os, sys, time
from molgen_pretrain.signals import StopRequest
with StopRequest() as stop:
    open('{note}-' + os.environ['RANK'], 'a').write('begun')
    while not stop.signal:
        time.sleep(0.05)
    time.sleep(1.5)  # a save that takes longer than submitit's patience
sys.exit(128 + stop.signal)
"""


def job(folder: Path, key: str, code: str = NOTE, *after: str) -> Job:
    """A job that runs `code`."""
    script = folder / f"{key}.py"
    script.write_text(code.format(note=folder / key))
    return Job(key, str(script), folder / key, after)


def test_each_starts_after_those_before_it(tmp_path: Path) -> None:
    told: list[str] = []
    outcomes = SlurmJobs(TWO_AT_A_TIME, "local").run(
        [
            job(tmp_path, "trunk", SLOWLY),
            job(tmp_path, "bad", FAIL),
            job(tmp_path, "branch", AFTER_TRUNK, "trunk"),
            job(tmp_path, "below", NOTE, "bad"),
        ],
        runpy.run_path,
        folder=tmp_path / "jobs",
        on_end=lambda job, outcome: told.append(job.key),
    )
    assert {key: outcome.state.value for key, outcome in outcomes.items()} == {
        "trunk": "finished",
        "bad": "failed",
        "branch": "finished",
        "below": "blocked",
    }
    assert sorted(told) == sorted(outcomes)
    assert told.index("trunk") < told.index("branch")
    assert [(tmp_path / f"branch-{rank}").read_text() for rank in (0, 1)] == ["2", "2"]
    assert not (tmp_path / "below-0").exists()


def test_a_signal_lets_the_jobs_save(tmp_path: Path) -> None:
    told: dict[str, Outcome] = {}
    begun = tmp_path / "long-1"

    def stop_once_begun() -> None:
        while not begun.exists():
            threading.Event().wait(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop_once_begun)
    stopper.start()
    with pytest.raises(Interrupted), EndAtOnce():
        SlurmJobs(TWO_AT_A_TIME, "local").run(
            [job(tmp_path, "long", SAVE), job(tmp_path, "below", NOTE, "long")],
            runpy.run_path,
            folder=tmp_path / "jobs",
            on_end=lambda job, outcome: told.update({job.key: outcome}),
        )
    stopper.join()
    assert {key: outcome.state for key, outcome in told.items()} == {"long": State.STOPPED, "below": State.BLOCKED}
    word = tmp_path / "jobs" / "long.outcome.json"
    for _ in range(600):
        if word.exists():
            break
        threading.Event().wait(0.1)
    assert json.loads(word.read_text())["state"] == "stopped"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nodes": 2}, r"hydra\.launcher\.nodes=2.*hydra/launcher=slurm"),
        ({"setup": ["module load cuda"]}, r"hydra\.launcher\.setup"),
        ({"gpus_per_node": 3}, r"hydra\.launcher\.gpus_per_node=3: this machine shows 2"),
        ({"detach": True}, r"hydra\.launcher\.detach=True"),
    ],
)
def test_what_only_a_cluster_has(values: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(UserError, match=message):
        SlurmJobs(SlurmSettings(**values), "local").run([], runpy.run_path, folder=tmp_path)
