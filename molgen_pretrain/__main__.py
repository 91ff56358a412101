"""The application: `python -m molgen_pretrain [group=choice ...] [section.key=value ...]`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from molgen_pretrain.config.messages import explain
from molgen_pretrain.config.plain import to_run_config
from molgen_pretrain.config.preflight import preflight
from molgen_pretrain.config.schema import world_size_from_env
from molgen_pretrain.config.store import conf_dir, register
from molgen_pretrain.config.validate import validate

_FULL_ERROR = "HYDRA_FULL_ERROR"
_SILENT_RANK_SECONDS = 5


def run_job(cfg: DictConfig) -> None:
    """One run: check everything that can be checked in seconds, then train."""
    run_config = to_run_config(cfg)
    validate(run_config, world_size_from_env())
    inputs = preflight(run_config)
    # torch and transformers load only now: a mistake above is reported without waiting for them.
    from molgen_pretrain.training.runner import run

    run(
        run_config,
        inputs,
        resolved_yaml=OmegaConf.to_yaml(cfg, resolve=True),
        overrides=list(HydraConfig.get().overrides.task),
    )


def main() -> None:
    """Console entry point. Exit codes: 0 finished, 1 an error, 128 + n stopped by signal n after a save."""
    register()
    wants_traceback = os.environ.get(_FULL_ERROR, "0") not in ("", "0")

    def task(cfg: DictConfig) -> None:
        # Caught inside the job, because Hydra prints a line of its own about every error that leaves one.
        _reporting(lambda: run_job(cfg), wants_traceback)

    # Hydra would print its own abridged traceback; with this switch errors of composition arrive here instead.
    os.environ[_FULL_ERROR] = "1"
    application = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)
    _reporting(application, wants_traceback)


def _reporting(action: Callable[[], None], wants_traceback: bool) -> None:
    """Run `action`; a user's mistake is printed without a traceback and exits with 1, Ctrl-C with 130."""
    try:
        action()
    except KeyboardInterrupt:
        if wants_traceback:
            raise
        _print_error("interrupted before the first step")
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        message = explain(error)
        if message is None or wants_traceback:
            raise
        _print_error(message)
        sys.exit(1)


def _print_error(message: str) -> None:
    """Before torch is up the ranks of a node share the mistake, and one report is enough."""
    if "torch" not in sys.modules and os.environ.get("LOCAL_RANK", "0") != "0":
        # A launcher ends all ranks when the first one leaves: stay until the one that reports has done so.
        time.sleep(_SILENT_RANK_SECONDS)
        return
    rank = os.environ.get("RANK")
    prefix = "error: " if rank is None else f"[rank {rank}] error: "
    print("\n".join(prefix + line for line in message.splitlines()), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
