"""The preview's text: phases, decays, milestones and warnings of a plan, for rich's console."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from molgen_pretrain.config.advice import advise, decaying_steps, notes, warmup_steps
from molgen_pretrain.config.choices import HfExport
from molgen_pretrain.metrics.formats import format_count, format_percent
from molgen_pretrain.schedules import decay_crossings
from molgen_pretrain.tools.schedule_plan import RunPlan, decay_text


def report(plans: Sequence[RunPlan]) -> Iterator[RenderableType]:
    """Everything about the first plan, and a line for each of the others."""
    plan = plans[0]
    yield Text(plan.schedule.describe(), style="bold")
    tokens = format_count(plan.last_step * plan.tokens_per_step)
    yield Text(f"{plan.last_step:,} steps of {plan.tokens_per_step:,} tokens: {tokens} tokens")
    yield _phase_table(plan)
    yield Text(decay_text(plan))
    if plan.schedule.milestones:
        yield _milestone_table(plan)
    if plan.cfg.checkpoint.enable and plan.cfg.checkpoint.at_lr:
        yield _snapshot_table(plan)
    if len(plans) > 1:
        yield _comparison_table(plans)
    yield _checks(plan)


def _table(title: str, *columns: str, left: Sequence[str] = ()) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in columns:
        is_name = column == "plan"  # as long as the overrides that the user typed
        table.add_column(
            column,
            justify="left" if column in left else "right",
            no_wrap=not is_name,
            overflow="fold" if is_name else "ellipsis",
            min_width=None if is_name else len(column),
        )
    return table


def _phase_table(plan: RunPlan) -> Table:
    table = _table(
        "Phases", "phase", "first", "last", "steps", "lr first", "lr last", "tokens", "of the run", left=("phase",)
    )
    for span in plan.spans:
        steps = span.last - span.first + 1
        table.add_row(
            span.phase.value,
            f"{span.first:,}",
            f"{span.last:,}",
            f"{steps:,}",
            f"{plan.schedule.lr(span.first):.2e}",
            f"{plan.schedule.lr(span.last):.2e}",
            format_count(steps * plan.tokens_per_step),
            format_percent(steps / plan.last_step),
        )
    return table


def _milestone_table(plan: RunPlan) -> Table:
    table = _table("Milestones", "step", "tokens", "lr", "decay steps", "saved", "kept", left=("saved", "kept"))
    for step in plan.schedule.milestones:
        table.add_row(
            f"{step:,}",
            format_count(step * plan.tokens_per_step),
            f"{plan.schedule.lr(step):.2e}",
            f"{step - max((decay.start for decay in plan.decays if decay.start < step), default=step):,}",
            *_fate(plan, step),
        )
    return table


def _fate(plan: RunPlan, step: int) -> tuple[str, str]:
    """Whether the milestone is saved, and whether retention keeps it."""
    checkpoint = plan.cfg.checkpoint
    if checkpoint.enable:
        by_interval = step % checkpoint.interval == 0 or step == plan.last_step
        return "yes" if by_interval else f"yes, off interval {checkpoint.interval}", "always"
    if step == plan.last_step and checkpoint.hf_export is not HfExport.never:
        return "Hugging Face folder only", "always"
    return "NO (checkpoint.enable=false)", "no"


def _snapshot_table(plan: RunPlan) -> Table:
    table = _table("Snapshots on the way down, kept always", "step", "tokens", "lr", "checkpoint.at_lr")
    crossings = decay_crossings(plan.schedule, plan.cfg.checkpoint.at_lr, plan.last_step)
    for step, threshold in crossings.items():
        tokens = format_count(step * plan.tokens_per_step)
        table.add_row(f"{step:,}", tokens, f"{plan.schedule.lr(step):.2e}", f"{threshold:g}")
    return table


def _comparison_table(plans: Sequence[RunPlan]) -> Table:
    table = _table("Compared", "plan", "steps", "warmup", "peak lr", "last lr", "decaying", "warnings", left=("plan",))
    for plan in plans:
        rates = [plan.schedule.lr(step) for span in plan.spans for step in (span.first, span.last)]
        table.add_row(
            plan.label,
            f"{plan.last_step:,}",
            f"{warmup_steps(plan.schedule, plan.spans):,}",
            f"{max(rates):.2e}",
            f"{rates[-1]:.2e}",
            format_percent(decaying_steps(plan.schedule, plan.last_step) / plan.last_step),
            str(len(advise(plan.cfg, plan.schedule))),
        )
    return table


def _checks(plan: RunPlan) -> Text:
    warnings = advise(plan.cfg, plan.schedule)
    lines = [Text.assemble(("warning: ", "bold yellow"), warning) for warning in warnings]
    lines += [Text.assemble(("note: ", "bold cyan"), note) for note in notes(plan.cfg, plan.schedule)]
    return Text("\n").join(lines if warnings else [*lines, Text("no warnings", style="green")])
