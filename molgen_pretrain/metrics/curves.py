"""The picture of a run: loss and learning rate over steps, as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator, ScalarFormatter

from molgen_pretrain.metrics.rows import Row

_TRAIN, _VALIDATION, _RATE = "#2563a8", "#d1611f", "#4b7f52"
_FEW = 30  # so many points are shown one by one
INK, MUTED, GRID = "#222222", "#777777", "#e4e4e4"


def plot_curves(
    rows: Sequence[Row],
    path: Path,
    title: str,
    milestones: Sequence[int] = (),
    unigram_entropy: float | None = None,
) -> None:
    """Write a 1200 x 700 pixel PNG of a run to `path`.

    Above: training loss (raw faint, smoothed solid) and validation loss in nats per token, with the unigram
    entropy of the data as the yardstick if given. Below: the learning rate. `milestones` are the steps of
    kept checkpoints. Values that are not finite leave gaps. Works with any number of rows, also none.
    """
    figure = Figure(figsize=(12, 7), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 1, height_ratios=(3, 1), hspace=0.08, left=0.07, right=0.97, top=0.9, bottom=0.08)
    loss_axes = figure.add_subplot(grid[0])
    rate_axes = figure.add_subplot(grid[1], sharex=loss_axes)
    figure.text(0.07, 0.945, title, fontsize=15, fontweight="bold", color=INK)
    for axes in (loss_axes, rate_axes):
        style_axes(axes)
    _draw_loss(loss_axes, rows, unigram_entropy)
    _draw_rate(rate_axes, rows)
    steps = [step for row in rows if isinstance(step := row.get("step"), int)]
    # A milestone outside the logged steps would stretch the axis.
    reached = [step for step in milestones if steps and min(steps) <= step <= max(steps)]
    _draw_milestones((loss_axes, rate_axes), reached)
    figure.savefig(path, format="png")


def smooth(values: np.ndarray, half_width: int) -> np.ndarray:
    """Centred mean over up to 2 * half_width + 1 points, NaN where the input is; shape [n] in and out.

    Centred, because a trailing average lags far behind the fall of the first steps; the window grows from
    one point at the start for the same reason. Values that are not finite do not enter.
    """
    finite = np.isfinite(values)
    totals = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(len(values))
    half = np.minimum(index, half_width)
    first, last = index - half, np.minimum(index + half + 1, len(values))
    means = (totals[last] - totals[first]) / np.maximum(counts[last] - counts[first], 1)
    return np.where(finite, means, np.nan)


def _series(rows: Sequence[Row], kind: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one metric, ascending; where a step occurs twice, the later row counts."""
    points = {
        step: value
        for row in rows
        if row.get("kind") == kind
        and isinstance(step := row.get("step"), int)
        and isinstance(value := row.get(key), (int, float))
    }
    steps = sorted(points)
    values = np.array([points[step] for step in steps], dtype=float)
    values[~np.isfinite(values)] = np.nan
    return np.array(steps, dtype=float), values


def _draw_loss(axes: Axes, rows: Sequence[Row], unigram_entropy: float | None) -> None:
    steps, losses = _series(rows, "train", "loss")
    validation_steps, validation_losses = _series(rows, "validation", "loss")
    axes.set_ylabel("loss (nats per token)", color=INK)
    axes.tick_params(labelbottom=False)
    shown = np.concatenate([losses, validation_losses])
    shown = shown[np.isfinite(shown)]
    if len(shown) == 0:
        reason = "no finite loss logged" if len(steps) + len(validation_steps) else "no rows logged yet"
        axes.set_yticks([])
        axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", color=MUTED, fontsize=13)
        return
    if len(steps) <= _FEW:
        axes.plot(steps, losses, color=_TRAIN, lw=1.6, marker="o", ms=5, label="train")
    else:
        axes.plot(steps, losses, color=_TRAIN, alpha=0.3, lw=1)
        axes.plot(steps, smooth(losses, len(steps) // 60 + 1), color=_TRAIN, lw=2, label="train (smoothed)")
    if len(validation_steps):
        axes.plot(
            validation_steps,
            validation_losses,
            color=_VALIDATION,
            lw=1.2,
            marker="o",
            ms=6,
            markeredgecolor="white",
            label="validation",
            zorder=3,
        )
    if unigram_entropy is not None:
        axes.axhline(unigram_entropy, color=MUTED, lw=1.2, ls=(0, (5, 3)), label="unigram entropy of the data")
        shown = np.append(shown, unigram_entropy)
    _scale_loss(axes, float(shown.min()), float(shown.max()))
    axes.legend(loc="upper right", frameon=True, edgecolor="none", framealpha=0.9, labelcolor=INK)


def _scale_loss(axes: Axes, lowest: float, highest: float) -> None:
    """Logarithmic where the loss falls far: the first steps would otherwise flatten all others."""
    if lowest <= 0 or highest / lowest < 2:
        return
    axes.set_yscale("log")
    wide = highest / lowest > 5
    axes.yaxis.set_major_locator(
        LogLocator(subs=(1, 1.5, 2, 3, 5, 7)) if wide else MaxNLocator(nbins=7, steps=[1, 2, 5, 10])
    )
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(lowest / 1.06, highest * 1.06)


def _draw_rate(axes: Axes, rows: Sequence[Row]) -> None:
    steps, rates = _series(rows, "train", "lr")
    axes.set_ylabel("learning rate", color=INK)
    axes.set_xlabel("step", color=INK)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 2, 5, 10], integer=True))
    if not len(steps):
        axes.set(xticks=[], yticks=[])
    else:
        axes.plot(steps, rates, color=_RATE, lw=1.8, marker="o" if len(steps) <= _FEW else None, ms=4)
        axes.fill_between(steps, rates, color=_RATE, alpha=0.12, lw=0)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        axes.set_ylim(bottom=0)


def _draw_milestones(panels: tuple[Axes, Axes], milestones: Sequence[int]) -> None:
    for axes in panels:
        for step in milestones:
            axes.axvline(step, color=MUTED, lw=0.9, ls=":", zorder=0)
    # More labels than this would run into each other.
    for step in milestones if len(milestones) <= 12 else ():
        panels[0].annotate(
            f"{step:,}",
            (step, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=MUTED,
        )


def style_axes(axes: Axes) -> None:
    """The look that all pictures share: horizontal grid, no frame, muted labels."""
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=10, length=0)
    axes.margins(x=0.015)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GRID)
