"""What a run can do but probably should not: warnings with numbers, before the hours are spent.

What cannot work is an error (validate.py). Pure functions of the config and its schedule: the preview prints
them, and every run logs them at its start.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from molgen_pretrain.config.choices import HfExport, MuonAdjustLr
from molgen_pretrain.config.optimizer_schema import AdamConfig, MuonConfig, OptimizerConfig
from molgen_pretrain.config.schema import RunConfig
from molgen_pretrain.model.parameters import count
from molgen_pretrain.schedules import WSDS, Phase, PhaseSpan, Schedule, WarmupSchedule, WSDAdaptive, decay_crossings

# 10 to 20 % of a run's steps is where a decay has its effect (Hägele et al. 2024, arXiv 2405.18392).
DECAY_SHARE = 0.2
WARMUP_SHARE = (0.002, 0.05)
# Pythia-160M (Biderman et al. 2023, arXiv 2304.01373). The rule from here meets the other seven Pythia models,
# 70 M to 12 B, within a factor of 1.75.
ANCHOR_PARAMETERS, ANCHOR_LR = 162_322_944, 6e-4
PEAK_LR_FACTOR = 3.0
SMALLEST_RULED = 1_000_000  # parameters; the rule says nothing about toys
TAIL_SHARE = 0.05


def advise(cfg: RunConfig, schedule: Schedule) -> list[str]:
    """Warnings about a run that `validate` has passed, most costly first; empty where all looks well."""
    spans = schedule.phase_spans(run_length(cfg, schedule))
    return [
        *_lost_milestones(cfg, schedule),
        *_snapshots_that_never_come(cfg, schedule),
        *_decay_share(cfg, schedule, spans),
        *_clamped_windows(schedule),
        *_end_of_run(cfg, schedule, spans),
        *_warmup(cfg, schedule, spans),
        *_peak_lr(cfg, schedule, spans),
    ]


def notes(cfg: RunConfig, schedule: Schedule) -> list[str]:
    """What a reader of the plan should know: no mistakes here, though the first is one elsewhere."""
    return [*_milestones_off_the_interval(cfg, schedule), *_open_decision(schedule)]


def usual_peak_lr(parameters: int) -> float:
    """Peak learning rate of Adam by the 1/sqrt(model size) rule, anchored at Pythia-160M."""
    return ANCHOR_LR * math.sqrt(ANCHOR_PARAMETERS / parameters)


def run_length(cfg: RunConfig, schedule: Schedule) -> int:
    """Updates of the run: training.steps, or fewer where an adaptive decay was decided, which ends its run."""
    if isinstance(schedule, WSDAdaptive) and schedule.decay_start is not None:
        return min(cfg.training.steps, schedule.milestones[-1])
    return cfg.training.steps


def decaying_steps(schedule: Schedule, last_step: int) -> int:
    """Updates up to `last_step` that are spent decaying."""
    return sum(window.end - window.start for window in schedule.decay_windows(last_step))


def _milestones_off_the_interval(cfg: RunConfig, schedule: Schedule) -> Iterator[str]:
    interval, milestones = cfg.checkpoint.interval, schedule.milestones
    missed = [step for step in milestones if step % interval and step != run_length(cfg, schedule)]
    if cfg.checkpoint.enable and missed:
        yield (
            f"checkpoint.interval={interval}: misses {len(missed)} of {len(milestones)} milestones "
            f"({_steps(missed)}), {len(missed) / len(milestones):.0%} of the decayed models; saving by interval alone "
            "would never keep them. Here every milestone is saved and kept whatever the interval"
        )


def _open_decision(schedule: Schedule) -> Iterator[str]:
    if isinstance(schedule, WSDAdaptive) and schedule.decay_start is None:
        yield (
            f"scheduler: the loss decides where the decay starts, from step "
            f"{schedule.warmup_steps + schedule.min_stable_steps:,} on; shown is the latest start, "
            f"step {schedule.latest_start:,}"
        )


def _lost_milestones(cfg: RunConfig, schedule: Schedule) -> Iterator[str]:
    if cfg.checkpoint.enable or not schedule.milestones:
        return
    exported = cfg.checkpoint.hf_export is not HfExport.never
    lost = [step for step in schedule.milestones if not (exported and step == run_length(cfg, schedule))]
    if lost:
        yield (
            f"checkpoint.enable=false: {len(lost)} of {len(schedule.milestones)} milestones ({_steps(lost)}) are "
            "never saved, their decays are spent for nothing"
        )


def _snapshots_that_never_come(cfg: RunConfig, schedule: Schedule) -> Iterator[str]:
    last_step = run_length(cfg, schedule)
    missed = [lr for lr in cfg.checkpoint.at_lr if not decay_crossings(schedule, [lr], last_step)]
    if missed:
        yield (
            f"checkpoint.at_lr={cfg.checkpoint.at_lr}: no decay up to step {last_step} comes down through "
            f"{', '.join(f'{lr:g}' for lr in missed)}, so nothing is kept there"
        )
    elif cfg.checkpoint.at_lr and not cfg.checkpoint.enable:
        yield f"checkpoint.enable=false: nothing is kept at checkpoint.at_lr={cfg.checkpoint.at_lr} either"


def _decay_share(cfg: RunConfig, schedule: Schedule, spans: Sequence[PhaseSpan]) -> Iterator[str]:
    """Only of plans with a stable phase: a cosine decays all the time, and means to."""
    total = run_length(cfg, schedule)
    lengths = [window.end - window.start for window in schedule.decay_windows(total)]
    spent = sum(lengths)
    has_stable = any(span.phase is Phase.STABLE for span in spans)
    if spent <= DECAY_SHARE * total or not (has_stable or isinstance(schedule, WSDS)):
        return
    sum_of = " = " + " + ".join(f"{length:,}" for length in lengths) if 1 < len(lengths) <= 8 else ""
    yield (
        f"scheduler: {spent:,}{sum_of} of {total:,} steps ({spent / total:.1%}) are spent decaying; 10 to "
        f"{DECAY_SHARE:.0%} suffices (arXiv 2405.18392){_cheaper_plan(schedule, total, spent)}"
    )


def _cheaper_plan(schedule: Schedule, total: int, spent: int) -> str:
    if not isinstance(schedule, WSDS) or schedule.decay_steps is not None or schedule.decay_frac_of == "period":
        return ""
    steps = decaying_steps(replace(schedule, decay_frac_of="period"), total)
    if steps >= spent:
        return ""
    return (
        f". decay_frac={schedule.decay_frac:g} counts from step 0, so each decay is longer than the one before; "
        f"scheduler.decay_frac_of=period makes it {steps:,} steps ({steps / total:.1%})"
    )


def _clamped_windows(schedule: Schedule) -> Iterator[str]:
    if not isinstance(schedule, WSDS):
        return
    previous = 0
    for window in schedule.windows:
        wanted, has = schedule.decay_length(window.end, previous), window.end - window.start
        if wanted > has:
            before = "the warmup" if schedule.warmup_steps else "the start of the run"
            if previous and window.start == previous:
                before = f"milestone {previous}"
            yield (
                f"scheduler.checkpoints: the decay to milestone {window.end} should take {wanted:,} steps and has "
                f"{has:,}: it overlaps {before}, and no stable step is left between them"
            )
        previous = window.end


def _end_of_run(cfg: RunConfig, schedule: Schedule, spans: Sequence[PhaseSpan]) -> Iterator[str]:
    steps = run_length(cfg, schedule)
    windows = schedule.decay_windows(steps)
    if spans[-1].phase not in (Phase.DECAY, Phase.FINAL) or not windows:
        return
    rate, after, progress = schedule.lr(steps), steps - windows[-1].end, schedule.phase_progress(steps)
    if after > TAIL_SHARE * steps:
        yield (
            f"training.steps={steps}: the last {after:,} steps ({after / steps:.1%}) come after the decay, "
            f"at lr {rate:.3g}"
        )
    elif progress < 1 and steps not in schedule.milestones:
        yield f"training.steps={steps}: the run ends {progress:.0%} into a decay, at lr {rate:.3g}"


def _warmup(cfg: RunConfig, schedule: Schedule, spans: Sequence[PhaseSpan]) -> Iterator[str]:
    steps = run_length(cfg, schedule)
    warmup = warmup_steps(schedule, spans)
    low, high = WARMUP_SHARE
    fewest, most = max(1, math.ceil(low * steps)), math.floor(high * steps)
    if fewest <= warmup <= most or most < 1:  # below 20 steps there is nothing to choose
        return
    yield (
        f"scheduler: a warmup of {warmup:,} steps is {warmup / steps:.2%} of the run's {steps:,}; usual are "
        f"{low:.1%} to {high:.0%}, here {fewest:,} to {most:,} steps"
    )


def warmup_steps(schedule: Schedule, spans: Sequence[PhaseSpan]) -> int:
    """The step at which the first warmup is over; 0 without one."""
    if isinstance(schedule, WarmupSchedule):
        return schedule.warmup_steps
    return spans[0].last + 1 if spans[0].phase is Phase.WARMUP else 0


def _peak_lr(cfg: RunConfig, schedule: Schedule, spans: Sequence[PhaseSpan]) -> Iterator[str]:
    if not _has_lr_of_adam(cfg.optimizer):
        return
    heights = [window.start for window in schedule.decay_windows(run_length(cfg, schedule))]
    peak = max(schedule.lr(step) for step in [*heights, *(end for span in spans for end in (span.first, span.last))])
    parameters = count(cfg.model).total
    usual = usual_peak_lr(parameters)
    if parameters < SMALLEST_RULED or usual / PEAK_LR_FACTOR <= peak <= usual * PEAK_LR_FACTOR:
        return
    side, factor = ("above", peak / usual) if peak > usual else ("below", usual / peak)
    yield (
        f"optimizer.lr: the peak {peak:.3g} is {factor:.1f} times {side} what the 1/sqrt(model size) rule gives for "
        f"{parameters:,} parameters, {usual:.2g} (from {ANCHOR_LR:g} at Pythia-160M, arXiv 2304.01373); "
        f"usual is within a factor of {PEAK_LR_FACTOR:g}"
    )


def _has_lr_of_adam(optimizer: OptimizerConfig) -> bool:
    if isinstance(optimizer, MuonConfig):
        return optimizer.adjust_lr is MuonAdjustLr.match_rms_adamw
    return isinstance(optimizer, AdamConfig)


def _steps(steps: Sequence[int], shown: int = 6) -> str:
    more = f" and {len(steps) - shown} more" if len(steps) > shown else ""
    return ", ".join(map(str, steps[:shown])) + more
