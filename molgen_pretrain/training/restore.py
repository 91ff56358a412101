"""Where a run begins: at scratch, at its own newest checkpoint, at another run's, or at a Hugging Face snapshot."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from molgen_pretrain.checkpoint.checkpointer import Checkpointer
from molgen_pretrain.checkpoint.layout import step_of
from molgen_pretrain.config.choices import OnDamage, OnResume
from molgen_pretrain.config.hf_start import HfStart
from molgen_pretrain.config.plain import data_seed, resume_policy, resume_source
from molgen_pretrain.config.schema import HfPretrainInit, ResumeInit, RunConfig
from molgen_pretrain.data.dataset import JsonlTaggedPackedDataset
from molgen_pretrain.errors import UserError
from molgen_pretrain.model.hf_load import RowPlan, load_snapshot
from molgen_pretrain.optim.scheduler import ScheduleApplier
from molgen_pretrain.schedules import (
    Schedule,
    carry_decisions,
    changed_fields,
    differences,
    schedule_from_state,
    schedule_state,
)
from molgen_pretrain.training.plan import Progress

logger = logging.getLogger(__name__)


def saved_state(
    cfg: RunConfig, progress: Progress, applier: ScheduleApplier, data: JsonlTaggedPackedDataset
) -> dict[str, Any]:
    """The JSON half of a checkpoint."""
    return {
        "progress": progress.state(),
        "schedule": schedule_state(applier.schedule),
        "optimizer_groups": applier.group_settings(),
        "data_order": data.order_fingerprint,
        "data": _data_settings(cfg),
    }


def restore(
    cfg: RunConfig,
    checkpointer: Checkpointer,
    model: nn.Module,
    applier: ScheduleApplier,
    data: JsonlTaggedPackedDataset,
    hf_start: HfStart | None,
) -> Progress:
    """Fill model and optimizer from where the run begins, and settle which plan holds.

    The run's own checkpoints come first, whatever init says: a run name that exists is continued. Raises
    UserError where the stored schedule or parameter groups differ and `scheduler.on_resume` is strict.
    """
    fallback, init = _falls_back(cfg), cfg.init
    loaded = checkpointer.load_newest(model=model, optimizer=applier.optimizer, fallback=fallback)
    if loaded is None and isinstance(init, ResumeInit):
        optimizer = None if init.model_only else applier.optimizer
        loaded = _load_from(resume_source(init), checkpointer, model, optimizer, fallback=fallback)
        if init.model_only:
            logger.info("start: step 0 with the weights of %s", loaded[0])
            return Progress()
    if loaded is None:
        if isinstance(init, HfPretrainInit):
            _load_hf(model, init, hf_start, rows=cfg.model.vocab_size, seed=cfg.training.seed)
        else:
            logger.info("start: from scratch, seed %d", cfg.training.seed)
        return Progress()
    folder, state = loaded
    progress = Progress(**state["progress"])
    logger.info("start: after step %d of %s", progress.step, folder)
    _settle_plan(state, applier, resume_policy(cfg.scheduler))
    if state["data_order"] is None:
        logger.warning("the checkpoint comes from another program: its place in the data is not known")
    elif state["data_order"] != data.order_fingerprint:
        changed = changed_fields(state["data"], _data_settings(cfg)) or ["the content of its files"]
        logger.warning("the order of the data is no longer the checkpoint's: %s changed", "; ".join(changed))
    if progress.step >= cfg.training.steps:
        logger.warning("nothing to train: step %d of training.steps=%d is done", progress.step, cfg.training.steps)
    return progress


def rewound(
    cfg: RunConfig, checkpointer: Checkpointer, model: nn.Module, applier: ScheduleApplier, planned: Schedule
) -> Progress:
    """Fill model and optimizer from the run's newest checkpoint without NaN; return what it had done.

    The schedule is `planned`, the config's, with what was decided by then; or the checkpoint's, where it is to win.
    Raises UserError where there is none.
    """
    loaded = checkpointer.load_newest(
        model=model, optimizer=applier.optimizer, fallback=_falls_back(cfg), finite_only=True
    )
    if loaded is None:
        raise UserError(
            "training.anomaly=rewind: the run has no checkpoint to go back to yet; use skip, or a shorter"
            " checkpoint.interval"
        )
    folder, state = loaded
    if resume_policy(cfg.scheduler) is OnResume.use_checkpoint:
        applier.schedule = schedule_from_state(state["schedule"])
    else:
        applier.schedule = carry_decisions(state["schedule"], planned)
    logger.info("rewound to %s", folder)
    return Progress(**state["progress"])


def _falls_back(cfg: RunConfig) -> bool:
    """Whether an older checkpoint will do where a newer one is damaged."""
    return cfg.checkpoint.on_damage is OnDamage.fallback


def _load_from(
    source: Path, checkpointer: Checkpointer, model: nn.Module, optimizer: Optimizer | None, *, fallback: bool
) -> tuple[Path, dict[str, Any]]:
    """Another run's newest checkpoint, or the one step that `source` names. Without `optimizer` the weights alone."""
    if step_of(source) is not None:
        return source, checkpointer.load(source, model=model, optimizer=optimizer)
    other = Checkpointer(source / checkpointer.layout.root.name, keep_latest_k=0)
    loaded = other.load_newest(model=model, optimizer=optimizer, fallback=fallback)
    if loaded is None:
        raise UserError(f"init.from={source}: no committed checkpoint in this run; give a step-* folder")
    return loaded


def _load_hf(model: nn.Module, init: HfPretrainInit, start: HfStart | None, *, rows: int, seed: int) -> None:
    """Fill the model from the snapshot. Raises UserError where there was none to open."""
    if start is None:
        raise UserError("run_name: the run had checkpoints when it was started, and has none now; start it again")
    make_plan = partial(RowPlan.extended, tokens=start.tokens)
    if start.old_ids is not None:
        make_plan = partial(RowPlan.gathered, old_ids=start.old_ids)
    plan = make_plan(start.snapshot, base_tokens=start.base_tokens, rows=rows, new_tokens=init.new_tokens.value)
    load_snapshot(model, start.snapshot, plan, seed=seed)
    if len(plan.new_rows):
        logger.info("new rows (init.new_tokens=%s): %s", init.new_tokens.value, _ranges(plan.new_rows.tolist()))
    logger.info("start: step 0 with the weights of %s", start.snapshot.folder)


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers for people: `4, 7-9`."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _settle_plan(state: dict[str, Any], applier: ScheduleApplier, on_resume: OnResume) -> None:
    """Schedule and group settings of the config, or of the checkpoint where that is to win."""
    stored_groups, current_groups = state["optimizer_groups"], applier.group_settings()
    changed = differences(state["schedule"], schedule_state(applier.schedule))
    for name in sorted(stored_groups.keys() | current_groups.keys()):
        for line in changed_fields(stored_groups.get(name, {}), current_groups.get(name, {})):
            changed.append(f"optimizer group {name}, {line}")
    if changed and on_resume is OnResume.strict:
        raise UserError(
            f"scheduler.on_resume=strict: the plan differs from the checkpoint's: {'; '.join(changed)}; use "
            "scheduler.on_resume=override (config wins) or use_checkpoint (checkpoint wins)"
        )
    if changed:
        logger.warning("the plan changes, on_resume=%s: %s", on_resume.value, "; ".join(changed))
    if changed and on_resume is OnResume.use_checkpoint:
        applier.schedule = schedule_from_state(state["schedule"])
        applier.adopt_group_settings(stored_groups)
    else:
        applier.schedule = carry_decisions(state["schedule"], applier.schedule)


def _data_settings(cfg: RunConfig) -> dict[str, Any]:
    """The settings that decide the order of sequences, for a message that names what changed."""
    data = cfg.data
    return {
        "train_path": data.train_path,
        "sources": [asdict(source) for source in data.sources],
        "tokenizer": data.tokenizer,
        "seq_len": data.seq_len,
        "seed": data_seed(cfg),
        "shuffle_lines": data.shuffle_lines,
        "min_emb_len": data.min_emb_len,
        "lookahead_limit": data.lookahead_limit,
        "overflow": data.overflow.value,
    }
