"""A composed run that no later edit of a YAML file or the environment can change: what jobs are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from molgen_pretrain.config.plain import to_run_config
from molgen_pretrain.config.schema import RunConfig


@dataclass(frozen=True)
class FrozenRun:
    """A run as it was composed: plain values, picklable."""

    config: RunConfig
    resolved_yaml: str  # the same for people, with every interpolation resolved
    overrides: tuple[str, ...]  # what the user typed


def freeze(cfg: DictConfig, overrides: Sequence[str]) -> FrozenRun:
    """Raises UserError as `to_run_config` does."""
    return FrozenRun(to_run_config(cfg), OmegaConf.to_yaml(cfg, resolve=True), tuple(overrides))
