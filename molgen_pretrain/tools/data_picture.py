"""data.png: how long the units are, and how the chosen sequence lengths stand to them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from molgen_pretrain.metrics.curves import INK, MUTED, style_axes
from molgen_pretrain.metrics.formats import format_count
from molgen_pretrain.tools.data_lengths import is_long_tailed
from molgen_pretrain.tools.data_packing import fill_text
from molgen_pretrain.tools.data_stats import DataStats

_COLORS = ("#2563a8", "#d1611f", "#4b7f52", "#8a4fa3", "#b8902a", "#3a8f95")
_BINS = 90


def draw_stats(stats: DataStats, path: Path) -> None:
    """Write a 1200 x 700 pixel PNG to `path`: units by length above, units and tokens up to a length below.

    Above each source has its own line, below all of them are one. Vertical lines are percentiles of all units
    and, where the axis reaches them, the sequence lengths.
    """
    figure = Figure(figsize=(12, 7), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 1, height_ratios=(2, 1), hspace=0.1, left=0.08, right=0.97, top=0.86, bottom=0.09)
    units_axes = figure.add_subplot(grid[0])
    upto_axes = figure.add_subplot(grid[1], sharex=units_axes)
    for axes in (units_axes, upto_axes):
        style_axes(axes)
    _draw_units(units_axes, stats)
    _draw_upto(upto_axes, stats.together.units_of_length)
    _mark(units_axes, upto_axes, stats)
    title = textwrap.shorten(stats.target.title, 100, placeholder=" ...")
    figure.text(0.08, 0.95, title, fontsize=14, fontweight="bold", color=INK)
    figure.text(0.08, 0.915, _subtitle(stats), fontsize=10.5, color=MUTED)
    figure.savefig(path, format="png", pil_kwargs={"optimize": True})


def _draw_units(axes: Axes, stats: DataStats) -> None:
    lengths = stats.together.lengths
    if is_long_tailed(lengths):
        axes.set_xscale("log")
        edges = np.unique(np.geomspace(lengths.shortest, lengths.longest + 1, _BINS).round().astype(np.int64))
    else:
        width = max(1, -(-(lengths.longest - lengths.shortest + 1) // _BINS))
        edges = np.arange(lengths.shortest, lengths.longest + 1 + width, width)
    borders = (edges - 0.5).tolist()
    for source, color in zip(stats.sources, _cycled(len(stats.sources)), strict=True):
        values, counts = _arrays(source.units_of_length)
        axes.hist(values, bins=borders, weights=counts, histtype="stepfilled", color=color, alpha=0.25)
        axes.hist(values, bins=borders, weights=counts, histtype="step", color=color, lw=1.6, label=source.name)
    if len(stats.sources) > 1:
        axes.legend(loc="upper right", frameon=False, labelcolor=INK)
    axes.set_ylabel("units", color=INK)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
    axes.tick_params(labelbottom=False)


def _draw_upto(axes: Axes, units_of_length: Mapping[int, int]) -> None:
    values, counts = _arrays(units_of_length)
    for weights, color, name in ((counts, _COLORS[0], "units"), (values * counts, _COLORS[1], "tokens")):
        axes.plot(values, np.cumsum(weights) / weights.sum(), color=color, lw=1.8, label=name, drawstyle="steps-post")
    axes.legend(loc="lower right", frameon=False, labelcolor=INK)
    axes.set_ylim(0, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.set_ylabel("up to this length", color=INK)
    axes.set_xlabel("tokens of a unit", color=INK)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _mark(above: Axes, below: Axes, stats: DataStats) -> None:
    lengths = stats.together.lengths
    marks = {"median": lengths.median, "p95": lengths.p95, "p99": lengths.p99}
    marks |= {f"seq_len {p.seq_len:,}": p.seq_len for p in stats.together.packing if p.seq_len <= lengths.longest * 1.2}
    for name, length in marks.items():
        for axes in (above, below):
            axes.axvline(length, color=MUTED, lw=0.9, ls=":", zorder=0)
        above.annotate(
            name, (length, 1), xycoords=("data", "axes fraction"), xytext=(0, 4), textcoords="offset points",
            ha="center", fontsize=9, color=MUTED,
        )  # fmt: skip


def _subtitle(stats: DataStats) -> str:
    lengths = stats.together.lengths
    fills = (f"{fill_text(packing.fill)} filled at seq_len {packing.seq_len:,}" for packing in stats.together.packing)
    return ", ".join([f"{lengths.units:,} units of {lengths.mean:,.0f} tokens on average", *fills])


def _arrays(units_of_length: Mapping[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Lengths, ascending, and how many units have each."""
    values = np.array(sorted(units_of_length), dtype=np.int64)
    return values, np.array([units_of_length[value] for value in values.tolist()], dtype=np.int64)


def _cycled(count: int) -> list[str]:
    return [_COLORS[number % len(_COLORS)] for number in range(count)]
