"""schedule.png: learning rate and weight decay of one or several plans over steps and tokens."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from molgen_pretrain.metrics.curves import INK, MUTED, style_axes
from molgen_pretrain.metrics.formats import format_count
from molgen_pretrain.tools.schedule_plan import RunPlan, decay_text

_COLORS = ("#2563a8", "#d1611f", "#4b7f52", "#8a4fa3", "#b8902a", "#3a8f95", "#a83250", "#666666")
_NAME_HEIGHT = 0.033  # of the figure, per named line above the panels
_MOST_LABELS = 12  # more milestone labels than this would run into each other


def draw_plans(plans: Sequence[RunPlan], path: Path) -> None:
    """Write a 1200 x 700 pixel PNG of the plans to `path`.

    Learning rate above, weight decay below. The decays of the first plan are shaded and its milestones marked.
    The axis counts steps, with tokens underneath; plans of different batch sizes get a second column over
    tokens, since one step is not the same for them.
    """
    figure = Figure(figsize=(12, 7), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    same_batch = len({plan.tokens_per_step for plan in plans}) == 1
    columns = 1 if same_batch else 2
    top = 0.89 if len(plans) == 1 else 0.87 - _NAME_HEIGHT * len(plans)
    grid = figure.add_gridspec(
        2, columns, height_ratios=(3, 1), hspace=0.1, wspace=0.12, left=0.08, right=0.97, top=top, bottom=0.11
    )
    for column in range(columns):
        over_tokens = column == 1
        rate = figure.add_subplot(grid[0, column])
        decay = figure.add_subplot(grid[1, column], sharex=rate)
        _draw_column(rate, decay, plans, over_tokens=over_tokens)
        _label_steps(decay, plans[0].tokens_per_step if same_batch else None, over_tokens=over_tokens)
    _title(figure, plans)
    figure.savefig(path, format="png", pil_kwargs={"optimize": True})


def _draw_column(rate: Axes, decay: Axes, plans: Sequence[RunPlan], *, over_tokens: bool) -> None:
    for axes, name in ((rate, "learning rate"), (decay, "weight decay")):
        style_axes(axes)
        axes.set_ylabel("" if over_tokens else name, color=INK)
    for plan, color in reversed(list(zip(plans, _colors(len(plans)), strict=True))):
        unit = plan.tokens_per_step if over_tokens else 1
        steps = plan.drawn_steps()
        xs = [step * unit for step in steps]
        is_first = plan is plans[0]
        width, order = (2.2, 3) if is_first else (1.6, 2)
        for axes, value in ((rate, plan.schedule.lr), (decay, plan.schedule.weight_decay)):
            axes.plot(xs, [value(step) for step in steps], color=color, lw=width, zorder=order)
        if is_first:
            _mark(rate, decay, plan, unit, color)
    rate.tick_params(labelbottom=False)
    for axes in (rate, decay):
        axes.set_ylim(bottom=0)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)


def _mark(rate: Axes, decay: Axes, plan: RunPlan, unit: int, color: str) -> None:
    """Shade the decays of the plan, and mark its milestones."""
    for decay_start, decay_end in plan.decays:
        rate.axvspan(decay_start * unit, decay_end * unit, color=color, alpha=0.08, lw=0)
    milestones = plan.schedule.milestones
    for step in milestones:
        for axes in (rate, decay):
            axes.axvline(step * unit, color=MUTED, lw=0.9, ls=":", zorder=0)
    rates = [plan.schedule.lr(step) for step in milestones]
    rate.plot([step * unit for step in milestones], rates, ls="", marker="o", ms=6, color=color, mec="white", zorder=4)
    for step in milestones if len(milestones) <= _MOST_LABELS else ():
        rate.annotate(
            f"{step:,}", (step * unit, 1), xycoords=("data", "axes fraction"), xytext=(0, 4),
            textcoords="offset points", ha="center", fontsize=9, color=MUTED,
        )  # fmt: skip


def _title(figure: Figure, plans: Sequence[RunPlan]) -> None:
    """What the first plan is, and the name of each line in its colour where there are several."""
    title = textwrap.shorten(plans[0].schedule.describe(), 105, placeholder=" ...")
    figure.text(0.08, 0.945, title, fontsize=12.5, fontweight="bold", color=INK)
    if len(plans) == 1:
        figure.text(0.97, 0.02, decay_text(plans[0]), fontsize=10, color=MUTED, ha="right")
        return
    for row, (plan, color) in enumerate(zip(plans, _colors(len(plans)), strict=True)):
        name = f"— {textwrap.shorten(plan.label, 78, placeholder=' ...')}"
        height = 0.905 - _NAME_HEIGHT * row
        figure.text(0.08, height, name, fontsize=10.5, color=color, fontweight="bold")
        figure.text(0.97, height, decay_text(plan), fontsize=10, color=MUTED, ha="right")


def _colors(count: int) -> list[str]:
    return [_COLORS[i % len(_COLORS)] for i in range(count)]


def _label_steps(axes: Axes, tokens_per_step: int | None, *, over_tokens: bool) -> None:
    """Ticks as counts; with `tokens_per_step` the tokens stand under the steps."""

    def text(value: float, _position: int) -> str:
        count = _tick(value)
        return count if tokens_per_step is None else f"{count}\n{_tick(value * tokens_per_step)}"

    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(text))
    name = "tokens" if over_tokens else "step" if tokens_per_step is None else "step, tokens"
    axes.set_xlabel(name, color=INK)


def _tick(value: float) -> str:
    """A count without idle zeros: 950, 1.5k, 2k, 10.2M."""
    count = format_count(value) if value >= 1000 else f"{value:g}"
    return re.sub(r"\.0+(?=\D|$)|(?<=\.\d)0+(?=\D|$)", "", count)
