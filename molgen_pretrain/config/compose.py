"""Composition without the application: for tools, notebooks and tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir

from molgen_pretrain.config.plain import to_run_config
from molgen_pretrain.config.schema import RunConfig
from molgen_pretrain.config.store import conf_dir, register


def compose_run(overrides: Sequence[str], config_dir: Path | None = None) -> RunConfig:
    """The config that the application would get from these overrides."""
    register()
    search = [] if config_dir is None else [f"hydra.searchpath=[file://{config_dir.expanduser().absolute()}]"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return to_run_config(compose("config", overrides=[*overrides, *search]))
