"""The plan of a run before it starts: its schedule, the length of a step, and what they come to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from molgen_pretrain.config.advice import decaying_steps, run_length
from molgen_pretrain.config.batch import accumulation_steps
from molgen_pretrain.config.compose import compose_run
from molgen_pretrain.config.plain import build_schedule
from molgen_pretrain.config.schema import RunConfig
from molgen_pretrain.config.validate import parallel_degrees, validate
from molgen_pretrain.metrics.formats import format_percent
from molgen_pretrain.schedules import PhaseSpan, Schedule, Window


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A run's config and schedule with the sizes that follow from them.

    Steps run from 1 to `last_step`. `tokens_per_step` counts every position of the global batch, padding
    included, so tokens are an upper bound (packing leaves well under a percent).
    """

    label: str
    cfg: RunConfig
    schedule: Schedule
    tokens_per_step: int

    @property
    def last_step(self) -> int:
        return run_length(self.cfg, self.schedule)

    @cached_property
    def spans(self) -> tuple[PhaseSpan, ...]:
        return self.schedule.phase_spans(self.last_step)

    @cached_property
    def decays(self) -> tuple[Window, ...]:
        return self.schedule.decay_windows(self.last_step)

    def drawn_steps(self, most: int = 4000) -> list[int]:
        """About `most` steps that a curve needs: evenly spread, and both sides of every phase's ends."""
        stride = max(1, self.last_step // most)
        ends = {step for span in self.spans for step in (span.first, span.last)}
        return sorted({*range(1, self.last_step + 1, stride), self.last_step, *ends})

    def rows(self) -> Iterator[tuple[str, int, int, float, float, str]]:
        """(label, step, tokens after it, lr, weight decay, phase) of every step."""
        for step in range(1, self.last_step + 1):
            lr, weight_decay = self.schedule.lr(step), self.schedule.weight_decay(step)
            phase = self.schedule.phase(step).value
            yield self.label, step, step * self.tokens_per_step, lr, weight_decay, phase


def plan_run(overrides: Sequence[str], *, label: str, world_size: int = 1, config_dir: Path | None = None) -> RunPlan:
    """Compose and check a run as the application would, and start nothing.

    `config_dir` is what `--config-dir` is to the application: a folder with choices of your own. Raises
    UserError or Hydra's errors, which `config.messages.explain` turns into the application's messages.
    """
    cfg = compose_run(overrides, config_dir)
    validate(cfg, world_size)
    degree = parallel_degrees(cfg, world_size).data_parallel
    batch = cfg.training.local_batch_size * degree
    batch *= accumulation_steps(cfg.training.local_batch_size, cfg.training.global_batch_size, degree)
    return RunPlan(
        label=label,
        cfg=cfg,
        schedule=build_schedule(cfg.scheduler),
        tokens_per_step=batch * cfg.training.seq_len,
    )


def decay_text(plan: RunPlan) -> str:
    """How much of the run is spent decaying, in words."""
    if not plan.decays:
        return f"{plan.last_step:,} steps without a decay"
    spent, count = decaying_steps(plan.schedule, plan.last_step), len(plan.decays)
    share = format_percent(spent / plan.last_step)
    return f"{spent:,} of {plan.last_step:,} steps ({share}) decaying, {count} decay{'s' if count > 1 else ''}"


def overlaid(base: Sequence[str], changes: Sequence[str]) -> list[str]:
    """`changes` on top of `base`. A group that `changes` chooses anew drops the settings that `base` gave it."""
    chosen = {_key(change) for change in changes}
    kept = [o for o in base if not any(_key(o) == key or _key(o).startswith(f"{key}.") for key in chosen)]
    return [*kept, *changes]


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]
