"""The application: `python -m molgen_pretrain [group=choice ...] [section.key=value ...]`."""

from __future__ import annotations

import os

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from molgen_pretrain.config.frozen import freeze
from molgen_pretrain.config.store import conf_dir, register
from molgen_pretrain.errors import FULL_ERROR, UserError
from molgen_pretrain.job import leave_in_order, report_errors, train
from molgen_pretrain.sweep.task import wants_traceback


def run_single(cfg: DictConfig) -> None:
    """One run, without a sweep around it. Raises UserError for settings that only a sweep has."""
    run = freeze(cfg, HydraConfig.get().overrides.task)
    if run.config.sweep.plan_only:
        raise UserError("sweep.plan_only=true: shows the plan of a sweep; start one with -m as the first argument")
    train(run)


def main() -> None:
    """Console entry point. Exit codes: 0 finished, 1 an error, 128 + n ended by signal n, with the last step saved."""
    leave_in_order(_compose_and_run, wants_traceback=wants_traceback())


def _compose_and_run() -> None:
    register()

    def task(cfg: DictConfig) -> None:
        # Caught inside the job, because Hydra prints a line of its own about every error that leaves one.
        report_errors(lambda: run_single(cfg), wants_traceback=wants_traceback())

    # Hydra would print its own abridged traceback; with this switch errors of composition arrive here instead.
    os.environ[FULL_ERROR] = "1"
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()


if __name__ == "__main__":
    main()
