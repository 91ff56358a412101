"""From Hydra's multirun to a sweep, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from molgen_pretrain.launchers.jobs import JobLauncher


class Multirun:
    """One `-m`: how its points compose, what it is called, where it goes."""

    def __init__(self, hydra_context: HydraContext, config: DictConfig) -> None:
        self._loader = hydra_context.config_loader
        self._config = config

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The config of a point, as a job of its own would see it."""
        cfg = self._loader.load_sweep_config(self._config, list(overrides))
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg

    def run(
        self, overrides: Sequence[Sequence[str]], varied: Sequence[Sequence[str]], launcher: JobLauncher, *, share: bool
    ) -> list[JobReturn]:
        """Train the points, or with sweep.plan_only show what would be trained. Raises UserError, Interrupted."""
        # Here, because Hydra imports every plugin at every start.
        from rich.console import Console

        from molgen_pretrain.job import run_task
        from molgen_pretrain.sweep.directory import SweepDirectory
        from molgen_pretrain.sweep.names import sweep_name
        from molgen_pretrain.sweep.points import check_points, make_points
        from molgen_pretrain.sweep.run import Sweep
        from molgen_pretrain.training.logs import RunLogs

        points = make_points(overrides, varied, self.compose)
        check_points(points, ranks=launcher.ranks)
        name = self._config.run_name or sweep_name(self._config.description, self._typed())
        runs = Path(self._config.paths.runs).expanduser().absolute()
        sweep = Sweep(SweepDirectory(runs / name), points, command=self._command(), share=share)
        if self._config.sweep.plan_only:
            print(sweep.preview())
            return []
        logs = RunLogs(0, Console())
        try:
            sweep.run(launcher, run_task, open_log=logs.open_file)
        finally:
            logs.close()
        return [self._return(sweep.return_value(point), point.overrides) for point in points]

    def constant(self) -> set[str]:
        """Overrides that were typed without values to sweep over, which every point has."""
        return set(self._config.hydra.overrides.task)

    def _command(self) -> list[str]:
        overrides = self._config.hydra.overrides
        return [o for o in overrides.hydra if o != "hydra.mode=MULTIRUN"] + list(overrides.task)

    def _typed(self) -> list[str]:
        """What decides the points: what was typed and what a config file sweeps over, less what only looks."""
        params = self._config.hydra.sweeper.get("params") or {}
        typed = [o for o in self._config.hydra.overrides.task if not o.lstrip("+").startswith(("sweep.", "run_name="))]
        return typed + [f"{key}={value}" for key, value in params.items()]

    @staticmethod
    def _return(value: Any, overrides: Sequence[str]) -> JobReturn:
        result = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
        result.return_value = value
        return result
