"""The door of this room: save a training state as one commit, and bring one back, on any number of ranks."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from molgen_pretrain.checkpoint import loading, saving
from molgen_pretrain.checkpoint.background import Background
from molgen_pretrain.checkpoint.commit import read_manifest
from molgen_pretrain.checkpoint.errors import CheckpointDamaged, CheckpointSaveError
from molgen_pretrain.checkpoint.host_copy import HostCopy
from molgen_pretrain.checkpoint.layout import MANIFEST_FILE, CheckpointLayout, step_of
from molgen_pretrain.checkpoint.planning import Planner
from molgen_pretrain.checkpoint.ranks import Ranks
from molgen_pretrain.checkpoint.retention import retire
from molgen_pretrain.errors import UserError

logger = logging.getLogger(__name__)


class Checkpointer:
    """Saves to and loads from one run's `checkpoint/` folder, on a file system that all ranks share.

    `save`, `load` and `load_newest` are collective: every rank of the group calls them with the same step.
    Without an initialised process group they work for a single process.

    An asynchronous one copies the state to host memory and writes in a thread: use it in a `with` statement,
    or call `wait` before the process group goes. Until then the newest save may be under way.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_latest_k: int,
        milestones: Collection[int] = (),
        asynchronous: bool = False,
        timeout_seconds: float = 1800,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        """
        Args:
            folder: where `step-*` folders go; made at the first save, in a folder that exists.
            keep_latest_k: newest checkpoints to keep; 0 keeps all.
            milestones: steps whose checkpoints are marked to be kept always, by later runs too. May be set
                anew at any time, on all ranks: a plan can change while it runs.
            asynchronous: write in the background. Making one is collective then: it forms a process group.
            timeout_seconds: how long the background waits for a rank that is silent but not known to be dead.
            process_group: a group of all ranks, preferably gloo; None for the default group.
        """
        self.layout = CheckpointLayout(Path(folder))
        self._keep_latest_k = keep_latest_k
        self.milestones = frozenset(milestones)
        self.last_stall_seconds = 0.0
        """How long the last save held up its callers, with every `wait` since the save before."""
        self.failures_in_a_row = 0
        """Saves that storage refused since the last one that was committed; the same on every rank."""
        self._ranks = Ranks(process_group)
        self._writers = Ranks.apart(timeout_seconds) if asynchronous else self._ranks
        self._planner = Planner()
        self._copy = HostCopy() if asynchronous else None
        self._background = Background()
        self._waited_seconds = 0.0  # in `wait`, since the last save
        # Steps on disk that belong to this training's past: saved by it, or loaded by it. Any other was left
        # by a training that went another way, or is damaged, and is replaced when its step comes.
        self._own_steps: set[int] = set()
        self._damaged: set[int] = set()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the save under way; its failure is raised, or logged where another error is on its way."""
        try:
            self.wait()
        except Exception as failure:
            if error is None:
                raise
            logger.error("%s", failure)

    def steps(self) -> list[int]:
        """Committed steps, ascending."""
        return self.layout.committed_steps()

    def wait(self) -> None:
        """Return when no save is under way. All ranks call it at the same places.

        Raises:
            CheckpointSaveError: on every rank, if storage failed the save that was under way; raised once.
            RankFailure: on every rank, if anything else failed it on any.
        """
        began = time.perf_counter()
        try:
            self._background.wait()
        finally:
            self._waited_seconds += time.perf_counter() - began

    def save(self, step: int, *, model: nn.Module, optimizer: Optimizer | None, state: Mapping[str, Any]) -> Path:
        """Commit the state after update `step`, then apply retention; return the checkpoint's folder.

        A step that this training has already committed is left as it is. What killed saves left behind is
        removed first, so only one training may save to a folder at a time. An asynchronous save returns as
        soon as the state may change; what goes wrong after that is raised by the next call.

        Args:
            optimizer: None saves a model only, which can start a training but not continue one.
            state: everything else needed to go on, JSON-serialisable; rank 0's is the one stored.

        Raises:
            CheckpointSaveError: on every rank, if storage failed on any; nothing is left behind. Also if it
                failed the save before and nobody has called `wait`: then this one has not begun.
            RankFailure: on every rank, if anything else failed on any.
            UserError: on every rank, if host memory is too small for an asynchronous save.
        """
        began = time.perf_counter() - self._waited_seconds
        try:
            self.wait()
            final = self.layout.folder(step)
            if not self._ranks.first(lambda: self._is_saved(step)):
                self._begin(step, model, optimizer, state)
        finally:
            self.last_stall_seconds = time.perf_counter() - began
            self._waited_seconds = 0.0
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
            CheckpointSaveError: see `wait`, which comes first.
        """
        self.wait()
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
        if contents.finite is False and self._ranks.is_first:
            logger.warning("%s was saved with NaN or infinity in its tensors", folder)
        return contents.state

    def load_newest(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer | None,
        checksums: bool = True,
        fallback: bool = True,
        finite_only: bool = False,
    ) -> tuple[Path, dict[str, Any]] | None:
        """Load the newest committed checkpoint that is sound; return its folder and state.

        Damaged ones are reported, left in place, and passed over. None if there is none to consider.

        Args:
            fallback: False raises at the first damaged one instead.
            finite_only: pass over checkpoints that were not verified to be free of NaN and infinity.

        Raises:
            CheckpointDamaged: there are checkpoints and all of them are damaged.
            CheckpointMismatch: the newest sound one does not fit the program.
            CheckpointSaveError: see `wait`, which comes first.
        """
        self.wait()
        problems: list[str] = []
        for step in self._ranks.first(lambda: self._loadable(finite_only)):
            try:
                state = self.load(step, model=model, optimizer=optimizer, checksums=checksums)
            except CheckpointDamaged as damage:  # noqa: PERF203 - a handful of steps
                if not fallback:
                    raise
                self._damaged.add(step)
                problems += [f"{damage.folder.name}/{line}" for line in damage.problems]
                if self._ranks.is_first:
                    logger.error("%s\nGoing back to the next older checkpoint.", damage)
            else:
                return self.layout.folder(step), state
        if problems:
            raise CheckpointDamaged(self.layout.root, problems)
        return None

    def _is_saved(self, step: int) -> bool:
        # os.path.isfile says False where a lost mount makes Path.is_file raise: then the write reports it.
        return step in self._own_steps and os.path.isfile(self.layout.folder(step) / MANIFEST_FILE)

    def _begin(self, step: int, model: nn.Module, optimizer: Optimizer | None, state: Mapping[str, Any]) -> None:
        began = time.perf_counter()
        pending = saving.collect(
            self._ranks,
            self._planner,
            step,
            model=model,
            optimizer=optimizer,
            state=state,
            milestone=step in self.milestones,
        )
        copy = self._copy
        if copy is None:
            self._commit(pending, began)
            return
        self._ranks.together(lambda: copy.reserve(pending.tensors))
        copied = replace(pending, tensors=copy.take(pending.tensors))
        self._background.start(lambda: self._commit(copied, began))

    def _commit(self, pending: saving.PendingSave, began: float) -> None:
        """Write, commit, retire. In the background of an asynchronous save."""
        try:
            manifest = saving.write(self._writers, self.layout, pending)
        except CheckpointSaveError:
            self.failures_in_a_row += 1
            raise
        self.failures_in_a_row = 0
        self._own_steps.add(pending.step)
        self._damaged.discard(pending.step)
        if self._writers.is_first:
            seconds = time.perf_counter() - began
            size = manifest.total_bytes / 2**20
            logger.info("saved %s: %.1f MiB in %.2f s", self.layout.folder(pending.step), size, seconds)
            try:
                retire(
                    self.layout,
                    pending.step,
                    keep_latest_k=self._keep_latest_k,
                    milestones=self.milestones,
                    damaged=self._damaged,
                )
            except OSError as error:  # the save stands, and the other ranks have gone on
                logger.warning("older checkpoints in %s could not be deleted: %s", self.layout.root, error)

    def _loadable(self, finite_only: bool) -> list[int]:
        """Committed steps, the newest first; a damaged one is among them, to be reported when its turn comes."""
        return [step for step in reversed(self.steps()) if not finite_only or self._may_be_finite(step)]

    def _may_be_finite(self, step: int) -> bool:
        try:
            return read_manifest(self.layout.folder(step)).finite is True
        except CheckpointDamaged:
            return True

    def _continue_from(self, folder: Path) -> None:
        """The training's past now ends at this checkpoint; what it saved later belongs to another future."""
        step = step_of(folder)
        if step is not None and folder.parent == self.layout.root:
            self._own_steps = {own for own in self._own_steps if own < step} | {step}


def _require_committed(folder: Path) -> None:
    if not (folder / MANIFEST_FILE).is_file():
        there = ", ".join(str(step) for step in CheckpointLayout(folder.parent).committed_steps())
        raise UserError(f"{folder} is no committed checkpoint; committed steps beside it: {there or 'none'}")
