"""What is handed to sbatch: the text of the script for every preset, and which mistakes are found before."""

import os
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from molgen_pretrain.errors import UserError
from molgen_pretrain.launchers.jobs import Job, State
from molgen_pretrain.launchers.slurm import SlurmJobs
from molgen_pretrain.launchers.slurm_settings import SlurmSettings

PRESETS = Path(__file__).resolve().parents[3] / "conf" / "hydra" / "launcher"
GOLDEN = Path(__file__).with_name("golden")
# Numbers its jobs from 71; squeue knows none.
FAKE_SLURM = {
    "sbatch": 'echo x >> submitted; echo "Submitted batch job $((70 + $(wc -l < submitted)))"',
    "squeue": "exit 0",
    "srun": "exit 1",
}


@pytest.fixture
def login_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to submit from, on a machine with a pretended Slurm."""
    (tmp_path / "bin").mkdir()
    for name, body in FAKE_SLURM.items():
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\ncd {tmp_path}\n{body}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    for name in ("NGPU_PER_NODE", "SUBMITIT_PREEMPT_SIGNAL", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def preset(name: str) -> dict:
    """The launcher's settings as `hydra/launcher=name` chooses them."""
    content = OmegaConf.load(PRESETS / f"{name}.yaml")
    (base,) = content.pop("defaults")
    settings = OmegaConf.structured(SlurmSettings) if base == "schema_slurm" else preset(base)
    return OmegaConf.merge(settings, content)


def submit(settings: SlurmSettings, folder: Path, *jobs: Job) -> None:
    outcomes = SlurmJobs(settings).run(jobs, runpy.run_path, folder=folder / "sweep" / "jobs")
    assert {outcome.state for outcome in outcomes.values()} == {State.SUBMITTED}


def script(number: int, folder: Path) -> str:
    text = (folder / "sweep" / "jobs" / f"{number}_submission.sh").read_text()
    return text.replace(shlex.quote(sys.executable), "PYTHON").replace(str(folder), "FOLDER") + "\n"


@pytest.mark.parametrize("name", ["slurm", "slurm_node", "slurm_nodes"])
def test_script_of_every_preset(name: str, login_node: Path) -> None:
    settings = OmegaConf.to_object(OmegaConf.merge(preset(name), {"detach": True}))
    submit(settings, login_node, Job("lone", "", login_node / "lone"))
    assert script(71, login_node) == (GOLDEN / f"{name}.sh").read_text()


def test_script_of_branches_with_everything_set(login_node: Path) -> None:
    """An array that waits for two jobs, one of them a task of an array."""
    settings = SlurmSettings(
        job_name="molecules",
        partition="gpu",
        account="chem",
        qos="long",
        timeout_min=90,
        nodes=2,
        tasks_per_node=4,
        cpus_per_task=6,
        gpus_per_task=1,
        mem_per_gpu="80G",
        constraint="h100",
        exclude="node7",
        nodelist="node[1-4]",
        gres="nvme:1",
        exclusive=True,
        comment="a sweep",
        mail_type="END",
        mail_user="me@lab.org",
        signal_delay_s=300,
        array_parallelism=2,
        setup=["module load cuda", 'export PATH="$HOME/bin:$PATH"'],
        additional_parameters={"licenses": "nvme:2", "no-kill": True, "hint": None},
        srun_args=["--cpu-bind=cores"],
        max_requeues=3,
        detach=True,
    )
    trunks = [Job("t0", "", login_node / "t0"), Job("t1", "", login_node / "t1")]
    branches = [Job(f"b{i}", "", login_node / f"b{i}", after=("t0", "t1")) for i in range(3)]
    submit(settings, login_node, *trunks, *branches)
    assert script(72, login_node) == (GOLDEN / "branches.sh").read_text()


def test_ranks_per_node_are_a_default_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NGPU_PER_NODE", "4")
    settings = preset("slurm_nodes")
    assert OmegaConf.to_object(settings).ranks == 16
    assert settings.gpus_per_node == 4
    settings.tasks_per_node = 2
    assert OmegaConf.to_object(settings).ranks == 8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nodes": 0}, r"hydra\.launcher\.nodes=0: must be at least 1"),
        ({"max_requeues": -1}, r"hydra\.launcher\.max_requeues=-1"),
        ({"poll_seconds": 0}, r"hydra\.launcher\.poll_seconds=0"),
        ({"timeout_min": 2, "signal_delay_s": 120}, r"hydra\.launcher\.signal_delay_s=120.*120 s"),
        ({"mem_gb": 8, "mem_per_cpu": "1G"}, r"hydra\.launcher\.mem_gb=8.*mem_per_cpu"),
        ({"additional_parameters": {"no-requeue": True}}, r"additional_parameters\.no-requeue.*launcher"),
        ({"additional_parameters": {"--time": 5}}, r"hydra\.launcher\.timeout_min=5"),
        ({"additional_parameters": {"cpus-per-task": 5}}, r"hydra\.launcher\.cpus_per_task=5"),
    ],
)
def test_settings_that_cannot_be(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SlurmSettings(**values)


def test_without_slurm_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"login node.*hydra/launcher=basic or slurm_local"):
        SlurmJobs(SlurmSettings()).run([], runpy.run_path, folder=tmp_path / "jobs")


def test_what_sbatch_refuses_is_said(login_node: Path) -> None:
    (login_node / "bin" / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition: gpuu' >&2\nexit 1\n")
    with pytest.raises(UserError, match=r"sbatch refuses lone: .*invalid partition: gpuu"):
        submit(SlurmSettings(detach=True), login_node, Job("lone", "", login_node / "lone"))


def test_inside_another_job_its_marks_are_hidden_from_sbatch(login_node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `srun --pty bash`, where people also start sweeps."""
    sbatch = login_node / "bin" / "sbatch"
    sbatch.write_text(sbatch.read_text().replace("#!/bin/sh\n", f"#!/bin/sh\nenv > {login_node}/seen\n"))
    for name, value in {"SLURM_JOB_ID": "5", "SLURM_NTASKS": "9", "SLURM_CONF": "/c", "MASTER_PORT": "29511"}.items():
        monkeypatch.setenv(name, value)
    submit(SlurmSettings(detach=True), login_node, Job("lone", "", login_node / "lone"))
    seen = dict(line.split("=", 1) for line in (login_node / "seen").read_text().splitlines() if "=" in line)
    assert (seen["SLURM_CONF"], seen["MASTER_PORT"]) == ("/c", "29511")
    assert not {"SLURM_JOB_ID", "SLURM_NTASKS"} & seen.keys()
    assert os.environ["SLURM_JOB_ID"] == "5"
