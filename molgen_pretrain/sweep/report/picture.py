"""report.png: the curves of all points in one picture, for a slide or a chat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from molgen_pretrain.metrics.curves import INK, MUTED, style_axes
from molgen_pretrain.sweep.report.curves import Curve, Curves, close_up
from molgen_pretrain.sweep.report.headline import figures
from molgen_pretrain.sweep.report.palette import LIGHT, look
from molgen_pretrain.sweep.report.records import Report

_DASHES = ("-", (0, (5, 2)), (0, (1, 1.3)), (0, (5, 1.5, 1, 1.5)))  # as the page's DASHES
_LONGEST_NAME = 34
_MOST_NAMES = 34
_FEW = 30  # so many values are shown one by one


def draw_report(report: Report, curves: Sequence[Curves], path: Path) -> None:
    """Write a 1500 x 950 pixel PNG: train (smoothed) and validation loss in nats per token, and learning rate."""
    figure = Figure(figsize=(15, 9.5), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        3, 1, height_ratios=(3, 2, 1.2), hspace=0.1, left=0.06, right=0.77, top=0.89, bottom=0.07
    )
    train = figure.add_subplot(grid[0])
    validation, rate = (figure.add_subplot(grid[i], sharex=train) for i in (1, 2))
    figure.text(0.06, 0.945, report.title, fontsize=16, fontweight="bold", color=INK, parse_math=False)
    said = "   ·   ".join(f"{figure.label}: {figure.value}" for figure in figures(report))
    figure.text(0.06, 0.912, said, fontsize=10.5, color=MUTED, parse_math=False)
    _draw_panel(train, "train loss, smoothed", [of_point.smoothed for of_point in curves])
    _draw_panel(validation, "validation loss", [of_point.validation for of_point in curves])
    _draw_panel(rate, "learning rate", [of_point.lr for of_point in curves])
    for axes in (train, validation):
        axes.tick_params(labelbottom=False)
    rate.set_ylim(bottom=0)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    rate.set_xlabel("step", color=INK)
    rate.xaxis.set_major_formatter(EngFormatter(sep=""))
    rate.xaxis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 2, 5, 10], integer=True))
    _name_points(figure, report)
    figure.savefig(path, format="png", pil_kwargs={"optimize": True})


def _draw_panel(axes: Axes, title: str, curves: Sequence[Curve]) -> None:
    """The curves, close up where their first fall would flatten all else."""
    style_axes(axes)
    axes.set_ylabel(title, color=INK)
    for i, curve in enumerate(curves):
        axes.plot(curve.steps, curve.values, marker="o" if len(curve.steps) <= _FEW else None, ms=4, **_line(i))
    if limits := close_up(curves):
        axes.set_ylim(*limits)
    if not any(np.isfinite(curve.values).any() for curve in curves):
        axes.set_yticks([])
        axes.text(0.5, 0.5, "nothing logged yet", transform=axes.transAxes, ha="center", color=MUTED, fontsize=12)


def _line(index: int) -> dict[str, Any]:
    color, dash = look(index)
    return {"color": LIGHT[color], "ls": _DASHES[dash], "lw": 1.6}


def _name_points(figure: Figure, report: Report) -> None:
    names = [point.name for point in report.points][:_MOST_NAMES]
    handles = [Line2D([], [], **_line(i)) for i in range(len(names))]
    if more := len(report.points) - len(names):
        handles.append(Line2D([], [], ls=""))
        names.append(f"and {more} more")
    legend = figure.legend(
        handles, [_short(name) for name in names], loc="upper left", bbox_to_anchor=(0.78, 0.895), frameon=False,
        labelcolor=INK, fontsize=10.5, handlelength=2.6,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def _short(name: str) -> str:
    """The beginning and the end, which tells one point from the next."""
    if len(name) <= _LONGEST_NAME:
        return name
    half = (_LONGEST_NAME - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
