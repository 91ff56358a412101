"""The application: `python -m molgen_pretrain [group=choice ...] [section.key=value ...]`."""

from __future__ import annotations

import os
import sys
import time
import traceback
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
from molgen_pretrain.errors import RankLostError, SharedError, error_lines
from molgen_pretrain.signals import EndAtOnce, Interrupted

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
    """Console entry point. Exit codes: 0 finished, 1 an error, 128 + n ended by signal n, with the last step saved."""
    wants_traceback = os.environ.get(_FULL_ERROR, "0") not in ("", "0")
    with EndAtOnce():
        _reporting(lambda: _compose_and_run(wants_traceback), wants_traceback)


def _compose_and_run(wants_traceback: bool) -> None:
    register()

    def task(cfg: DictConfig) -> None:
        # Caught inside the job, because Hydra prints a line of its own about every error that leaves one.
        _reporting(lambda: run_job(cfg), wants_traceback)

    # Hydra would print its own abridged traceback; with this switch errors of composition arrive here instead.
    os.environ[_FULL_ERROR] = "1"
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()


def _reporting(action: Callable[[], None], wants_traceback: bool) -> None:
    """Run `action`; a user's mistake is printed without a traceback and exits with 1, signal n with 128 + n."""
    try:
        action()
    except Interrupted as interrupt:
        if wants_traceback:
            traceback.print_exc()
        if _is_spokesman():
            _print_error(str(interrupt))
        sys.exit(128 + interrupt.number)
    except RankLostError:
        if wants_traceback:
            raise
        sys.exit(1)
    except Exception as error:
        message = explain(error)
        if message is None or wants_traceback:
            raise
        # Before torch is up the ranks share every mistake.
        is_shared = isinstance(error, SharedError) or "torch" not in sys.modules
        if _is_spokesman() or not is_shared:
            _print_error(message)
        else:
            # A launcher ends all ranks when the first one leaves: stay until the one that reports has done so.
            time.sleep(_SILENT_RANK_SECONDS)
        sys.exit(1)


def _is_spokesman() -> bool:
    """Whether this is the rank of its node that reports what all have to say."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _print_error(message: str) -> None:
    print(error_lines(message), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
