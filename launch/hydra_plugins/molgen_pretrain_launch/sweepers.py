"""`hydra/sweeper=basic` (every point by itself) and `trunk` (what points have in common is trained once)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.molgen_pretrain_launch.launchers import JobsLauncher
from hydra_plugins.molgen_pretrain_launch.multirun import Multirun
from molgen_pretrain.errors import UserError


class PointsSweeper(Sweeper):
    """The product of all values given, `params` from a config file among them.

    `share_trunk`: points whose runs are the same up to some step train that part once.
    """

    def __init__(self, share_trunk: bool, params: Mapping[str, str] | None = None) -> None:
        self._share_trunk = share_trunk
        self._params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from molgen_pretrain.sweep.names import varying

        assert self.hydra_context is not None
        assert self.config is not None
        if not isinstance(self.launcher, JobsLauncher):
            raise UserError(
                f"hydra.launcher._target_={type(self.launcher).__name__}: does not know this sweeper's jobs; use "
                "hydra/launcher=basic, slurm, slurm_node, slurm_nodes or slurm_local"
            )
        given = [f"{key}={value}" for key, value in self._params.items()] + arguments
        parsed = OverridesParser.create(config_loader=self.hydra_context.config_loader).parse_overrides(given)
        # Hydra's own product, so that choice(), range() and glob() mean what they mean elsewhere.
        (points,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
        multirun = Multirun(self.hydra_context, self.config)
        return multirun.run(points, varying(points), self.launcher.jobs, share=self._share_trunk)
