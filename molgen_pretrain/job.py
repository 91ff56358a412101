"""One run in this process, as the command line or a launcher starts it: the checks, the training, the exit code."""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from molgen_pretrain.config.frozen import FrozenRun
from molgen_pretrain.config.messages import explain
from molgen_pretrain.config.preflight import preflight
from molgen_pretrain.config.schema import world_size_from_env
from molgen_pretrain.config.validate import validate
from molgen_pretrain.errors import RankLostError, SharedError, UserError, error_lines
from molgen_pretrain.run_directory import RunDirectory
from molgen_pretrain.signals import EndAtOnce, Interrupted
from molgen_pretrain.sweep.fork import fork_run
from molgen_pretrain.sweep.task import Task

logger = logging.getLogger(__name__)

_SILENT_RANK_SECONDS = 5


def train(run: FrozenRun) -> None:
    """Check everything that can be checked in seconds, then train."""
    validate(run.config, world_size_from_env())
    inputs = preflight(run.config)
    _load_training()(run.config, inputs, resolved_yaml=run.resolved_yaml, overrides=run.overrides)


def run_task(task: Task) -> None:
    """A launcher's `Entry`: one edge of a sweep, on this rank."""
    # It has named the sweep; as wandb's name it would be every point's.
    os.environ.pop("WANDB_RUN_NAME", None)
    is_stopped = False
    try:
        leave_in_order(lambda: _fork_and_train(task), wants_traceback=task.wants_traceback)
    except SystemExit as end:
        is_stopped = isinstance(end.code, int) and end.code > 128  # by a signal: what is left of the time is short
        raise
    finally:
        if task.reports_to is not None and _is_rank_0() and not is_stopped:
            _refresh_report(task.reports_to)


def leave_in_order(action: Callable[[], None], *, wants_traceback: bool) -> None:
    """Run `action`; a signal or a user's mistake ends the process without a traceback.

    Exit codes: 1 an error, 128 + n ended by signal n, with the last step saved.
    """
    with EndAtOnce():
        report_errors(action, wants_traceback=wants_traceback)


def report_errors(action: Callable[[], None], *, wants_traceback: bool) -> None:
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


def _load_training() -> Callable[..., None]:
    """The runner; torch and transformers load only now: a mistake above is reported without waiting for them.

    They make half a million objects that stay until the end. Looking for garbage among them again and again takes
    a quarter of their import time, and would take a third of a second now and then while training.
    """
    gc.disable()
    try:
        from molgen_pretrain.training.runner import run
    finally:
        gc.freeze()
        gc.enable()
    return run


def _fork_and_train(task: Task) -> None:
    if task.fork is not None and _is_rank_0():
        # The other ranks look at the run's folder only after rank 0 has met them.
        fork_run(RunDirectory(task.fork.parent), task.fork.step, RunDirectory(task.folder))
    train(task.run)


def _refresh_report(sweep: Path) -> None:
    """So that a comparison stands in the morning, also where nobody waits for the jobs."""
    from molgen_pretrain.sweep.report.make import make_report

    try:
        make_report([sweep])
    except (OSError, UserError) as error:
        logger.warning("no report of %s: %s", sweep, error)


def _is_spokesman() -> bool:
    """Whether this is the rank of its node that reports what all have to say."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _is_rank_0() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _print_error(message: str) -> None:
    print(error_lines(message), file=sys.stderr, flush=True)
