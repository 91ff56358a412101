"""What Hydra's own groups hydra/launcher and hydra/sweeper are in this application."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from molgen_pretrain.launchers.slurm_settings import SlurmSettings

_PLUGINS = "hydra_plugins.molgen_pretrain_launch"


@dataclass
class LocalLauncherConfig:
    """This machine: every point of a sweep in processes of its own."""

    _target_: str = f"{_PLUGINS}.launchers.LocalLauncher"
    parallel: int = 1  # points at a time; the visible GPUs are shared out
    processes: int = 1  # ranks per point


@dataclass(kw_only=True)
class SlurmLauncherConfig(SlurmSettings):
    """Every point, or every edge of a trunk sweep, as a Slurm job."""

    _target_: str = f"{_PLUGINS}.launchers.SlurmLauncher"
    executor: str = "slurm"  # local: submitit's imitation on this machine


@dataclass
class SweeperConfig:
    """The product of all values that are given."""

    _target_: str = f"{_PLUGINS}.sweepers.PointsSweeper"
    share_trunk: bool = False  # what the runs of several points have in common is trained once
    params: dict[str, Any] | None = None  # what a config file sweeps over: {scheduler.decay_frac: "0.05,0.1"}
