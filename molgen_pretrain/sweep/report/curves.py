"""The curves of a report with no more points than a picture can show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from molgen_pretrain.metrics.curves import smooth
from molgen_pretrain.sweep.report.run import RunRecord

_DRAWN = 800  # points per curve; a wide screen has about as many columns for it
_SMOOTHED = 40  # a smoothed curve averages over about 1/20 of the longest run
_EARLY = 0.1  # share of the steps in which losses fall most


@dataclass(frozen=True)
class Curve:
    """Arrays of shape [drawn points]; where `values` is NaN the line breaks."""

    steps: np.ndarray
    tokens: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Curves:
    """What is drawn of one point."""

    raw: Curve
    smoothed: Curve
    validation: Curve
    lr: Curve


def all_curves(runs: Sequence[RunRecord], limit: int = _DRAWN) -> list[Curves]:
    """Each curve with at most `limit` points, the lowest and the highest of every stretch among them.

    All are smoothed alike: runs that have the same past have it on the same line.
    """
    half_width = max((len(run.train.steps) for run in runs), default=0) // _SMOOTHED
    return [_curves(run, half_width, limit) for run in runs]


def close_up(curves: Sequence[Curve]) -> tuple[float, float] | None:
    """The range of the losses after the first tenth of the steps, with a margin.

    None where the losses of that tenth would not flatten the others.
    """
    steps = np.concatenate([[0], *(curve.steps for curve in curves)])
    values = np.concatenate([[np.nan], *(curve.values for curve in curves)])
    late = values[(steps >= _EARLY * steps.max()) & np.isfinite(values)]
    if not len(late) or np.nanmax(values) - late.min() < 2 * (late.max() - late.min()):
        return None
    margin = 0.05 * (late.max() - late.min()) or 0.01 * abs(late.max())
    return float(late.min() - margin), float(late.max() + margin)


def _curves(run: RunRecord, half_width: int, limit: int) -> Curves:
    rows, validation = run.train, run.validation
    return Curves(
        raw=_reduced(run, rows.steps, rows.loss, limit),
        smoothed=_reduced(run, rows.steps, smooth(rows.loss, half_width), limit),
        validation=_reduced(run, validation.steps, validation.loss, limit),
        lr=_reduced(run, rows.steps, rows.lr, limit),
    )


def keep_extremes(values: np.ndarray, limit: int) -> np.ndarray:
    """Ascending places of at most `limit` of the values (5 at least), shape [n] to [kept].

    The values are cut into stretches, each of which keeps its first, last, lowest and highest one and one that is
    not finite, if there is one: peaks, edges and gaps stay where they are.
    """
    if len(values) <= limit:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), limit // 5 + 1).astype(int)
    kept: set[int] = set()
    for first, end in pairwise(edges.tolist()):
        stretch = values[first:end]
        finite = np.isfinite(stretch)
        lowest = int(np.argmin(np.where(finite, stretch, np.inf)))
        highest = int(np.argmax(np.where(finite, stretch, -np.inf)))
        gap = int(np.argmin(finite))  # the first that is not finite, or place 0
        kept.update(first + place for place in (0, len(stretch) - 1, lowest, highest, gap))
    return np.array(sorted(kept))


def _reduced(run: RunRecord, steps: np.ndarray, values: np.ndarray, limit: int) -> Curve:
    places = keep_extremes(values, limit)
    drawn = values[places]
    return Curve(
        steps=steps[places],
        tokens=np.round(np.nan_to_num(run.tokens_at(steps[places]))).astype(np.int64),
        values=np.where(np.isfinite(drawn), drawn, np.nan),
    )
