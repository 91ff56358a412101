"""What a launcher is given for an edge of a sweep: a frozen run, and where it begins."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from molgen_pretrain.config.frozen import FrozenRun
from molgen_pretrain.errors import full_errors


@dataclass(frozen=True)
class Fork:
    """Where a run begins that goes on with another one's."""

    parent: Path  # the run directory
    step: int  # as it was after this step


@dataclass(frozen=True)
class Task:
    """One edge; pickled on its way to the process that trains it."""

    run: FrozenRun
    folder: Path  # its run directory
    fork: Fork | None = None
    reports_to: Path | None = None  # the sweep whose report the job brings up to date at its end
    wants_traceback: bool = False


@cache
def wants_traceback() -> bool:
    """Whether the user has set HYDRA_FULL_ERROR: asked first before the application sets it for Hydra."""
    return full_errors()
