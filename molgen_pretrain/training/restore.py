"""Where a run begins: at scratch, at its own newest checkpoint, or at another run's."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from molgen_pretrain.checkpoint.checkpointer import Checkpointer
from molgen_pretrain.checkpoint.layout import step_of
from molgen_pretrain.config.schema import InitMode, OnResume, RunConfig
from molgen_pretrain.data.dataset import JsonlTaggedPackedDataset
from molgen_pretrain.errors import UserError
from molgen_pretrain.optim.scheduler import ScheduleApplier
from molgen_pretrain.schedules import Schedule, differences, schedule_from_state, schedule_state
from molgen_pretrain.training.trainer import Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Restored:
    """Where training goes on; `source` is the checkpoint, None for a fresh start."""

    progress: Progress
    source: Path | None


def saved_state(
    cfg: RunConfig, progress: Progress, schedule: Schedule, data: JsonlTaggedPackedDataset
) -> dict[str, Any]:
    """The JSON half of a checkpoint."""
    return {
        "progress": progress.state(),
        "schedule": schedule_state(schedule),
        "data_order": data.order_fingerprint,
        "data": _data_settings(cfg),
    }


def _data_settings(cfg: RunConfig) -> dict[str, Any]:
    """The settings that decide the order of sequences, for a message that names what changed."""
    data = cfg.data
    return {
        "train_path": data.train_path,
        "tokenizer": data.tokenizer,
        "seq_len": data.seq_len,
        "seed": cfg.training.seed if data.seed is None else data.seed,
        "shuffle_lines": data.shuffle_lines,
        "min_emb_len": data.min_emb_len,
        "lookahead_limit": data.lookahead_limit,
        "overflow": data.overflow.value,
    }


def restore(
    cfg: RunConfig,
    checkpointer: Checkpointer,
    model: nn.Module,
    applier: ScheduleApplier,
    data: JsonlTaggedPackedDataset,
) -> Restored:
    """Fill model and optimizer from the newest checkpoint there is, and settle which schedule holds.

    The run's own checkpoints come first, whatever init says: a run name that exists is continued. Raises
    UserError where the stored schedule differs and `scheduler.on_resume` is strict.
    """
    optimizer = applier.optimizer
    loaded = checkpointer.load_newest(model=model, optimizer=optimizer)
    if loaded is None and cfg.init.mode is InitMode.resume:
        source = Path(cfg.init.source).expanduser().absolute()
        if step_of(source) is not None:
            loaded = source, checkpointer.load(source, model=model, optimizer=optimizer)
        else:
            other = Checkpointer(source / checkpointer.layout.root.name, keep_latest_k=0)
            loaded = other.load_newest(model=model, optimizer=optimizer)
            if loaded is None:
                raise UserError(f"init.from={source}: no committed checkpoint in this run; give a step-* folder")
    if loaded is None:
        logger.info("start: from scratch, seed %d", cfg.training.seed)
        return Restored(Progress(), None)
    folder, state = loaded
    progress = Progress(**state["progress"])
    logger.info("start: after step %d of %s", progress.step, folder)
    applier.schedule = _settle_schedule(state["schedule"], applier.schedule, cfg.scheduler.on_resume)
    if state["data_order"] != data.order_fingerprint:
        changed = differences(state["data"], _data_settings(cfg)) or ["the content of its files"]
        logger.warning("the order of the data is no longer the checkpoint's: %s changed", "; ".join(changed))
    if progress.step >= cfg.training.steps:
        logger.warning("nothing to train: step %d of training.steps=%d is done", progress.step, cfg.training.steps)
    return Restored(progress, folder)


def _settle_schedule(stored: dict[str, Any], current: Schedule, on_resume: OnResume) -> Schedule:
    changed = differences(stored, schedule_state(current))
    if not changed:
        return current
    if on_resume is OnResume.strict:
        raise UserError(
            "scheduler.on_resume=strict: the schedule differs from the checkpoint's: "
            + "; ".join(changed)
            + "; use scheduler.on_resume=override (config wins) or use_checkpoint (checkpoint wins)"
        )
    logger.warning("schedule, on_resume=%s: %s", on_resume.value, "; ".join(changed))
    return current if on_resume is OnResume.override else schedule_from_state(stored)
