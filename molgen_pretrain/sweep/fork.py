"""Branching off a run: a new run directory that looks as if it had trained the other's steps itself."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from molgen_pretrain.checkpoint.commit import publish
from molgen_pretrain.checkpoint.files import sync_folder
from molgen_pretrain.checkpoint.layout import CheckpointLayout, step_of
from molgen_pretrain.errors import UserError
from molgen_pretrain.metrics.jsonl import trim_rows
from molgen_pretrain.run_directory import RunDirectory
from molgen_pretrain.run_lock import held_run

logger = logging.getLogger(__name__)

_ASIDE = ".fork"
_WAIT_SECONDS = 60.0


def fork_run(parent: RunDirectory, step: int, child: RunDirectory) -> None:
    """Make `child` look like `parent` stopped after `step`; nothing to do where it has come that far already.

    Taken over up to that step: checkpoints and Hugging Face exports (as hard links, or copies where links are
    impossible), rows of metrics.jsonl, and TensorBoard's event files. These are taken whole: the child's own
    writer hides what they say of later steps. Everything else, name and id and config, the child makes itself;
    other files that it has already stay.

    Each piece comes by one rename, the checkpoint of `step` last. A kill in between leaves a run that stopped
    earlier, and the next call goes on. The child's lock is held, so call this before training takes it.

    Raises:
        UserError: the parent has no committed checkpoint of `step`, or a process that trains the child holds it.
        OSError: the child cannot be written.
    """
    if _reaches(child, step):
        return
    committed = CheckpointLayout(parent.checkpoints).committed_steps()
    if step not in committed:
        there = ", ".join(map(str, committed))
        raise UserError(
            f"{parent.root}: has no committed checkpoint of step {step} to branch off (there: {there or 'none'});"
            " train it up to there first"
        )
    with held_run(child.root, wait_seconds=_WAIT_SECONDS):
        if _reaches(child, step):  # another process was first
            return
        aside = child.root / _ASIDE
        shutil.rmtree(aside, ignore_errors=True)  # of a killed call
        aside.mkdir()
        _take_exports(parent, step, child, aside)
        _take_events(parent, child, aside)
        _take_rows(parent, step, child, aside)
        aside.rmdir()
        _take_checkpoints(parent, [taken for taken in committed if taken <= step], child)
    logger.info("%s branches off %s after step %d", child.root, parent.root, step)


def _reaches(child: RunDirectory, step: int) -> bool:
    return any(own >= step for own in CheckpointLayout(child.checkpoints).committed_steps())


def _take_exports(parent: RunDirectory, step: int, child: RunDirectory, aside: Path) -> None:
    for source in sorted(parent.hf_export(step).parent.glob("step-*")):
        exported = step_of(source)
        if exported is not None and exported <= step and not child.hf_export(exported).exists():
            child.hf_export(exported).parent.mkdir(exist_ok=True)
            _link_folder(source, aside / source.name, child.hf_export(exported))


def _take_events(parent: RunDirectory, child: RunDirectory, aside: Path) -> None:
    for source in sorted(parent.tensorboard.glob("*")):
        child.tensorboard.mkdir(exist_ok=True)
        shutil.copyfile(source, aside / source.name)
        os.replace(aside / source.name, child.tensorboard / source.name)


def _take_rows(parent: RunDirectory, step: int, child: RunDirectory, aside: Path) -> None:
    """Rows that the child has itself belong to no checkpoint of this step: a resume would drop them as well."""
    if parent.metrics.exists():
        rows = aside / parent.metrics.name
        shutil.copyfile(parent.metrics, rows)
        trim_rows(rows, step)
        os.replace(rows, child.metrics)


def _take_checkpoints(parent: RunDirectory, steps: list[int], child: RunDirectory) -> None:
    source, target = CheckpointLayout(parent.checkpoints), CheckpointLayout(child.checkpoints)
    target.root.mkdir(exist_ok=True)
    sync_folder(child.root)
    for leftover in target.leftovers():
        shutil.rmtree(leftover)
    own = target.committed_steps()
    for step in steps:
        if step not in own:
            if target.folder(step).exists():  # no checkpoint, whatever it is
                shutil.rmtree(target.folder(step))
            _link_folder(source.folder(step), target.temporary_folder(step), target.folder(step))


def _link_folder(source: Path, aside: Path, target: Path) -> None:
    """A folder of files that nobody changes, once more; complete when it stands under its name."""
    shutil.copytree(source, aside, copy_function=_link_or_copy)
    sync_folder(aside)
    publish(aside, target)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, one without links, or files that belong to somebody else
        shutil.copyfile(source, target)
        with open(target, "rb") as file:
            os.fsync(file.fileno())
