"""`hydra/launcher=basic` (this machine) and `slurm*`, also for sweepers of other packages."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.molgen_pretrain_launch.multirun import Multirun
from molgen_pretrain.launchers.jobs import JobLauncher

# What a job imports first, loaded once for all jobs of a sweep.
_PRELOAD = (
    "molgen_pretrain.__main__",
    "molgen_pretrain.training.runner",
    "torch.utils.tensorboard",
    "transformers.models.qwen3.modeling_qwen3",
)


class JobsLauncher(Launcher):
    """Hands a sweep's jobs to a JobLauncher."""

    jobs: JobLauncher

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._multirun = Multirun(hydra_context, config)
        self.jobs = self._build()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """For sweepers that know nothing of ours: each batch is a sweep by itself, in the same directory."""
        constant = self._multirun.constant()
        varied = [[o for o in overrides if o not in constant] for overrides in job_overrides]
        return self._multirun.run(job_overrides, varied, self.jobs, share=False)

    @abstractmethod
    def _build(self) -> JobLauncher: ...


class LocalLauncher(JobsLauncher):
    """Each point in processes of its own on this machine."""

    def __init__(self, **settings: Any) -> None:
        self._settings = settings

    def _build(self) -> JobLauncher:
        from molgen_pretrain.launchers.local import LocalJobs

        return LocalJobs(**self._settings, preload=_PRELOAD)


class SlurmLauncher(JobsLauncher):
    """Each point as a Slurm job, through submitit; `executor` local imitates one without Slurm."""

    def __init__(self, executor: str, **settings: Any) -> None:
        self._executor = executor
        self._settings = settings

    def _build(self) -> JobLauncher:
        from molgen_pretrain.launchers.slurm import SlurmJobs
        from molgen_pretrain.launchers.slurm_settings import SlurmSettings

        return SlurmJobs(SlurmSettings(**self._settings), self._executor)
