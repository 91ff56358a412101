"""What a run saves, brings back and exports, and how much trouble with storage it bears."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType

import yaml

from molgen_pretrain.checkpoint.checkpointer import Checkpointer
from molgen_pretrain.checkpoint.errors import CheckpointSaveError
from molgen_pretrain.config.choices import AsyncMode, HfExport
from molgen_pretrain.config.hf_start import HfStart
from molgen_pretrain.config.schema import RunConfig
from molgen_pretrain.data.dataset import JsonlTaggedPackedDataset
from molgen_pretrain.errors import SharedError
from molgen_pretrain.metrics.logger import MetricsLogger
from molgen_pretrain.metrics.rows import read_rows
from molgen_pretrain.model.hf_card import model_card
from molgen_pretrain.model.hf_io import export_hf
from molgen_pretrain.model.hf_weights import EXPORT_DTYPES
from molgen_pretrain.model.qwen3 import Qwen3ForPretraining, count_parameters
from molgen_pretrain.optim.scheduler import ScheduleApplier
from molgen_pretrain.parallel.distributed import World
from molgen_pretrain.run_directory import RunDirectory
from molgen_pretrain.training.plan import Progress
from molgen_pretrain.training.restore import restore, rewound, saved_state

logger = logging.getLogger(__name__)


class RunCheckpoints:
    """The checkpoints and exports of one run. A context: leaving it waits for a save that is under way."""

    def __init__(
        self,
        cfg: RunConfig,
        directory: RunDirectory,
        world: World,
        model: Qwen3ForPretraining,
        applier: ScheduleApplier,
        data: JsonlTaggedPackedDataset,
    ) -> None:
        self._cfg = cfg
        self._directory = directory
        self._world = world
        self._model = model
        self._applier = applier
        self._data = data
        self._planned = applier.schedule
        self._checkpointer = Checkpointer(
            directory.checkpoints,
            keep_latest_k=cfg.checkpoint.keep_latest_k,
            asynchronous=cfg.checkpoint.async_mode is AsyncMode["async"],
            timeout_seconds=cfg.parallelism.timeout_seconds,
        )

    def __enter__(self) -> RunCheckpoints:
        self._checkpointer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._checkpointer.__exit__(kind, error, trace)

    def restore(self, hf_start: HfStart | None) -> Progress:
        """Fill model and optimizer from where the run begins; see `restore.restore`."""
        return restore(self._cfg, self._checkpointer, self._model, self._applier, self._data, hf_start)

    def rewind(self, metrics: MetricsLogger, progress: Progress) -> None:
        """Back to the last checkpoint without NaN, except for the place in the data. Raises UserError without one."""
        self._attempt(self._checkpointer.wait)
        stored = rewound(self._cfg, self._checkpointer, self._model, self._applier, self._planned)
        progress.go_back_to(stored)
        metrics.rewind(progress.step)

    def save(self, progress: Progress, kept: frozenset[int]) -> float:
        """Checkpoint, with `kept` as the steps that stay, and export where that is wanted. Collective.

        Returns for how many seconds training stood still for the checkpoint. Trouble with storage costs the save or
        the export only; raises SharedError at the `checkpoint.max_failures`-th save in a row that fails.
        """
        if not self._cfg.checkpoint.enable:
            return 0.0
        worked = self._commit(progress, kept)
        stall_seconds = self._checkpointer.last_stall_seconds
        policy = self._cfg.checkpoint.hf_export
        is_milestone = progress.step in self._applier.schedule.milestones
        if worked and (policy is HfExport.every or (policy is HfExport.milestones and is_milestone)):
            self._export(progress)
        return stall_seconds

    def keep_last(self, progress: Progress, kept: frozenset[int], *, is_finished: bool, is_paused: bool) -> None:
        """The last step is saved, unless it was, and exported where that is wanted. Collective.

        A run that a signal has stopped is not exported: what is left of its time may be short. Raises SharedError
        where one of that fails.
        """
        step, policy = progress.step, self._cfg.checkpoint.hf_export
        if self._cfg.checkpoint.enable:
            # A save in the background counts when it is done.
            if not (self._commit(progress, kept) and self._attempt(self._checkpointer.wait)):
                raise SharedError(f"step {step}, the last, could not be saved; {self._try_again}")
        elif not is_finished:
            logger.warning("checkpoint.enable=false: step %d is not saved", step)
        exports = policy is not HfExport.never if is_finished else is_paused and policy is HfExport.every
        if not exports:
            return
        # As rank 0 sees it: the export is collective, and a shared file system may tell others later.
        is_exported = self._world.broadcast(self._directory.hf_export(step).exists())
        if not is_exported and not self._export(progress):
            raise SharedError(f"step {step}, the last, could not be exported; {self._try_again}")

    def _commit(self, progress: Progress, kept: frozenset[int]) -> bool:
        """Save unless this step has been; False where storage failed."""
        self._world.peers.activity.enter(progress.step, "checkpoint")
        self._checkpointer.milestones = kept
        # The save before this one may have failed in the background: that costs it, and not this one.
        self._attempt(self._checkpointer.wait)
        return self._attempt(
            partial(
                self._checkpointer.save,
                progress.step,
                model=self._model,
                optimizer=self._applier.optimizer,
                state=saved_state(self._cfg, progress, self._applier, self._data),
            )
        )

    def _export(self, progress: Progress) -> bool:
        """Write the Hugging Face folder of a step; False on every rank where storage failed. Collective."""
        self._world.peers.activity.enter(progress.step, "export")
        target, settings = self._directory.hf_export(progress.step), self._cfg.checkpoint
        problem = ""
        try:
            export_hf(
                self._model,
                self._cfg.data.tokenizer,
                target,
                is_writer=self._world.is_main,
                dtype=EXPORT_DTYPES[settings.hf_export_dtype.value],
                max_shard_size=settings.hf_export_shard_size,
                card=self._card(progress),
            )
        except OSError as error:
            problem = str(error)
        if problem := self._world.broadcast(problem):
            logger.error("no hf export of step %d: %s", progress.step, problem)
            return False
        logger.info("hf export: %s", target)
        return True

    def _card(self, progress: Progress) -> str | None:
        """The model card, on the rank that writes; None where the run's records cannot be read."""
        if not self._world.is_main:
            return None
        metrics = self._directory.metrics
        try:
            return model_card(
                run_name=self._directory.name,
                config=yaml.safe_load(self._directory.config.read_text(encoding="utf-8")),
                state=saved_state(self._cfg, progress, self._applier, self._data),
                rows=read_rows(metrics) if metrics.exists() else [],
                parameters=count_parameters(self._model),
                dtype=self._cfg.checkpoint.hf_export_dtype.value,
            )
        except OSError as error:  # on this rank alone, while the others are about to send it their parameters
            logger.warning("no model card of step %d: %s", progress.step, error)
            return None

    @property
    def _try_again(self) -> str:
        name = self._directory.name
        return f"the log has the reason. Started again (run_name={name}) the run goes on from what was saved"

    def _attempt(self, action: Callable[[], Path | None]) -> bool:
        """Whether a save worked. Trouble with storage is logged, until there has been too much of it in a row."""
        try:
            action()
        except CheckpointSaveError as error:
            failures, limit = self._checkpointer.failures_in_a_row, self._cfg.checkpoint.max_failures
            if failures >= limit:
                raise SharedError(
                    f"checkpoint.max_failures={limit}: so many saves in a row failed; give the run storage that works,"
                    f" or a higher limit. The last one: {error}"
                ) from error
            logger.error("the run goes on and saves again at the next checkpoint: %s", error)
            return False
        return True
