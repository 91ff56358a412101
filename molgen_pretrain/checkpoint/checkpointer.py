"""The door of this room: save a training state as one commit, and bring one back, on any number of ranks."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from molgen_pretrain.checkpoint import loading, saving
from molgen_pretrain.checkpoint.commit import read_manifest, sync_folder
from molgen_pretrain.checkpoint.errors import CheckpointDamaged
from molgen_pretrain.checkpoint.layout import MANIFEST_FILE, CheckpointLayout, step_of
from molgen_pretrain.checkpoint.ranks import Ranks
from molgen_pretrain.checkpoint.retention import steps_to_delete
from molgen_pretrain.errors import UserError

logger = logging.getLogger(__name__)


class Checkpointer:
    """Saves to and loads from one run's `checkpoint/` folder, on a file system that all ranks share.

    `save`, `load` and `load_newest` are collective: every rank of the group calls them with the same step.
    Without an initialised process group they work for a single process.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_latest_k: int,
        milestones: Collection[int] = (),
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        """
        Args:
            folder: where `step-*` folders go; made at the first save.
            keep_latest_k: newest checkpoints to keep; 0 keeps all.
            milestones: steps whose checkpoints are marked to be kept always, by later runs too. May be set
                anew at any time, on all ranks: a plan can change while it runs.
            process_group: a group of all ranks, preferably gloo; None for the default group.
        """
        self.layout = CheckpointLayout(Path(folder))
        self._keep_latest_k = keep_latest_k
        self.milestones = frozenset(milestones)
        self._ranks = Ranks(process_group)
        # Steps on disk that belong to this training's past: saved by it, or loaded by it. Any other was left
        # by a training that went another way, or is damaged, and is replaced when its step comes.
        self._own_steps: set[int] = set()
        self._damaged: set[int] = set()

    def steps(self) -> list[int]:
        """Committed steps, ascending."""
        return self.layout.committed_steps()

    def newest(self) -> int | None:
        """The newest committed step, or None."""
        return max(self.steps(), default=None)

    def save(self, step: int, *, model: nn.Module, optimizer: Optimizer | None, state: Mapping[str, Any]) -> Path:
        """Commit the state after update `step`, then apply retention; return the checkpoint's folder.

        A step that this training has already committed is left as it is. What killed saves left behind is
        removed first, so only one training may save to a folder at a time.

        Args:
            optimizer: None saves a model only, which can start a training but not continue one.
            state: everything else needed to go on, JSON-serialisable; rank 0's is the one stored.

        Raises:
            CheckpointSaveError: on every rank, if storage failed on any; nothing is left behind.
            RuntimeError: on every rank, if anything else failed on any.
        """
        final = self.layout.folder(step)
        # os.path.isfile says False where a lost mount makes Path.is_file raise: then the write reports it.
        if self._ranks.first(lambda: step in self._own_steps and os.path.isfile(final / MANIFEST_FILE)):
            return final
        started = time.perf_counter()
        pending = saving.collect(
            self._ranks,
            step,
            model=model,
            optimizer=optimizer,
            state=state,
            milestone=step in self.milestones,
        )
        size = saving.write(self._ranks, self.layout, pending)
        self._own_steps.add(step)
        self._damaged.discard(step)
        if self._ranks.is_first:
            seconds = time.perf_counter() - started
            logger.info("saved %s: %.1f MiB in %.2f s", final, size / 2**20, seconds)
            try:
                self._retire(step)
            except OSError as error:  # the save stands, and the other ranks have gone on
                logger.warning("older checkpoints in %s could not be deleted: %s", self.layout.root, error)
        return final

    def load(
        self,
        source: Path | int,
        *,
        model: nn.Module,
        optimizer: Optimizer | None,
        checksums: bool = True,
        hyperparameters: bool = False,
    ) -> dict[str, Any]:
        """Verify a checkpoint, then fill model and optimizer in place, bit for bit; return the saved state.

        Args:
            source: a committed step of this folder, or the path of a `step-*` folder of any run.
            optimizer: None takes the model only.
            checksums: read every file once more to check it; sizes are always checked.
            hyperparameters: also set the parameter groups' lr, betas and so on to the saved ones.

        Raises:
            UserError: there is no committed checkpoint.
            CheckpointDamaged: files are not what the manifest says. Unless reading itself failed midway,
                model and optimizer are untouched.
            CheckpointMismatch: names, shapes or dtypes differ from the program's; the weights are untouched.
        """
        folder = self.layout.folder(source) if isinstance(source, int) else Path(source)
        self._ranks.first(lambda: _require_committed(folder))
        loading.verify(self._ranks, folder, checksums=checksums)
        contents = loading.read_contents(self._ranks, folder)
        loading.fill(
            self._ranks,
            folder,
            contents,
            model=model,
            optimizer=optimizer,
            hyperparameters=hyperparameters,
        )
        self._continue_from(folder)
        return contents.state

    def load_newest(
        self, *, model: nn.Module, optimizer: Optimizer | None, checksums: bool = True
    ) -> tuple[Path, dict[str, Any]] | None:
        """Load the newest committed checkpoint that is sound; return its folder and state.

        Damaged ones are reported, left in place, and passed over. None if nothing was ever committed.

        Raises:
            CheckpointDamaged: there are checkpoints and all of them are damaged.
            CheckpointMismatch: the newest sound one does not fit the program.
        """
        problems: list[str] = []
        for step in reversed(self._ranks.first(self.steps)):
            try:
                state = self.load(step, model=model, optimizer=optimizer, checksums=checksums)
            except CheckpointDamaged as damage:  # noqa: PERF203 - a handful of steps
                self._damaged.add(step)
                problems += [f"{damage.folder.name}/{line}" for line in damage.problems]
                if self._ranks.is_first:
                    logger.error("%s\nGoing back to the next older checkpoint.", damage)
            else:
                return self.layout.folder(step), state
        if problems:
            raise CheckpointDamaged(self.layout.root, problems)
        return None

    def _continue_from(self, folder: Path) -> None:
        """The training's past now ends at this checkpoint; what it saved later belongs to another future."""
        step = step_of(folder)
        if step is not None and folder.parent == self.layout.root:
            self._own_steps = {own for own in self._own_steps if own < step} | {step}

    def _retire(self, step: int) -> None:
        """Delete what is no longer wanted. Steps ahead of this one are not this training's to count."""
        committed = {
            older: older in self.milestones or self._is_milestone(older)
            for older in self.steps()
            if older <= step and older not in self._damaged
        }
        for old in steps_to_delete(committed, self._keep_latest_k, protect={step}):
            # Renamed first: a kill while its files go must not leave something that looks committed.
            hidden = self.layout.folder(old).rename(self.layout.deleted_folder(old))
            sync_folder(self.layout.root)
            shutil.rmtree(hidden)

    def _is_milestone(self, step: int) -> bool:
        try:
            return read_manifest(self.layout.folder(step)).milestone
        except CheckpointDamaged as damage:
            logger.warning("%s\nIt is kept, since it may be a milestone.", damage)
            return True


def _require_committed(folder: Path) -> None:
    if not (folder / MANIFEST_FILE).is_file():
        there = ", ".join(str(step) for step in CheckpointLayout(folder.parent).committed_steps())
        raise UserError(f"{folder} is no committed checkpoint; committed steps beside it: {there or 'none'}")
