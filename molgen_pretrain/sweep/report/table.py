"""The table of points, from which the page and the Markdown are written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from molgen_pretrain.metrics.formats import format_count, format_duration
from molgen_pretrain.sweep.report.records import Point, Report, Status
from molgen_pretrain.sweep.report.run import Cost
from molgen_pretrain.sweep.report.settings import differing_settings, setting_text


@dataclass(frozen=True)
class Cell:
    text: str
    value: float | str | None = None  # what a column is sorted by; None comes last
    beside: str = ""  # small print
    is_best: bool = False
    status: Status | None = None  # where that is what the cell shows


@dataclass(frozen=True)
class Column:
    """A cell per point, in the order of the points."""

    title: str
    cells: tuple[Cell, ...]
    section: str = ""  # what comes before the title: `scheduler.`
    is_number: bool = True
    meaning: str = ""  # where the title does not say it
    foot: tuple[str, ...] = ()  # beside the labels of the table's foot


@dataclass(frozen=True)
class PointTable:
    points: tuple[Point, ...]
    settings: tuple[Column, ...]
    results: tuple[Column, ...]  # status, steps, losses
    milestones: tuple[Column, ...]
    costs: tuple[Column, ...]
    foot: tuple[str, ...]  # labels of the lines under the points

    @property
    def columns(self) -> tuple[Column, ...]:
        return (*self.settings, *self.results, *self.milestones, *self.costs)


def point_table(report: Report) -> PointTable:
    """Settings that differ, results, losses at milestones, and costs, whose totals are what was spent."""
    points = report.points
    finals = _final_cells(points, validation=True)
    parts = sum(len(sweep.trunk) for sweep in report.sweeps)
    return PointTable(
        points=points,
        settings=tuple(_setting(key, values) for key, values in differing_settings(points).items()),
        results=(
            Column("status", tuple(_status(point) for point in points), is_number=False),
            Column("step", tuple(_steps(point) for point in points)),
            Column("train loss", tuple(_final_cells(points, validation=False))),
            Column("validation loss", _marked(finals, _ranked(finals, points))),
        ),
        milestones=tuple(_milestone_columns(points)),
        costs=tuple(_cost_columns(report)),
        foot=(f"shared, {parts} part{'s' if parts > 1 else ''}", "total") if report.is_shared else ("total",),
    )


def loss_text(loss: float | None) -> str:
    """Nats per token to four places; empty where there is none."""
    if loss is None:
        return ""
    return f"{loss:.4f}" if math.isfinite(loss) else "NaN" if math.isnan(loss) else "infinite"


def best_point(report: Report) -> tuple[Point, float] | None:
    """The finished point of the lowest validation loss."""
    cells = _final_cells(report.points, validation=True)
    ranked = _ranked(cells, report.points)
    return (report.points[ranked[0][1]], ranked[0][0]) if ranked else None


def _setting(key: str, values: Sequence[Any]) -> Column:
    section, dot, name = key.rpartition(".")
    is_number = all(_is_number(value) or value in ("", None) for value in values)
    cells = []
    for value in values:
        text = setting_text(value)
        cells.append(Cell(text, float(value) if _is_number(value) else None if is_number else text))
    return Column(name, tuple(cells), section=section + dot, is_number=is_number)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _status(point: Point) -> Cell:
    return Cell(point.status.value, list(Status).index(point.status), beside=point.detail, status=point.status)


def _steps(point: Point) -> Cell:
    reached = point.run.reached
    is_done = point.steps is None or reached >= point.steps
    return Cell(f"{reached:,}" if is_done else f"{reached:,} / {point.steps:,}", reached)


def _final_cells(points: Sequence[Point], *, validation: bool) -> list[Cell]:
    """The newest loss of each point, with its step where that is not the last one reached."""
    cells = []
    for point in points:
        rows = point.run.validation if validation else point.run.train
        step = rows.last_step
        is_old = step is not None and step < point.run.reached
        cells.append(_loss_cell(rows.loss_at(step), f"at step {step:,}" if is_old else ""))
    return cells


def _milestone_columns(points: Sequence[Point]) -> Iterator[Column]:
    """Losses where a decay has ended, except at a run's own end, which is its final loss."""
    milestones = [set(point.run.milestones) - {point.steps} for point in points]
    for step in sorted(set().union(*milestones)):
        cells = []
        for point, own in zip(points, milestones, strict=True):
            validation, train = (rows.loss_at(step) for rows in (point.run.validation, point.run.train))
            cells.append(_loss_cell(validation, f"train {loss_text(train)}") if step in own else Cell(""))
        yield Column(f"step {step:,}", _marked(cells, _ranked(cells)), section="validation at ")


def _cost_columns(report: Report) -> Iterator[Column]:
    points, total = report.points, report.spent
    costs = [point.edge.cost for point in points]
    yield Column("tokens", tuple(_tokens(point) for point in points))
    if not report.is_shared:
        yield Column("time", tuple(_time(cost) for cost in costs), foot=(format_duration(total.seconds),))
        return
    trunk = sum((edge.cost for sweep in report.sweeps for edge in sweep.trunk), Cost())
    yield Column(
        "own steps",
        tuple(Cell(f"{cost.steps:,}", cost.steps) for cost in costs),
        meaning="steps that were trained for this point only",
        foot=(f"{trunk.steps:,}", f"{total.steps:,}"),
    )
    yield Column(
        "own time",
        tuple(_time(cost) for cost in costs),
        meaning="time that was spent on this point only",
        foot=(format_duration(trunk.seconds), format_duration(total.seconds)),
    )
    alone = tuple(_time(point.run.cost(0)) for point in points)
    yield Column("time alone", alone, meaning="time that this point would have taken as a run of its own")


def _tokens(point: Point) -> Cell:
    tokens = float(point.run.tokens_at(np.array([point.run.reached]))[0])
    return Cell("") if math.isnan(tokens) else Cell(format_count(tokens), tokens)


def _time(cost: Cost) -> Cell:
    return Cell(format_duration(cost.seconds), cost.seconds)


def _loss_cell(loss: float | None, beside: str = "") -> Cell:
    return Cell(loss_text(loss), loss if loss is not None and math.isfinite(loss) else None, beside)


def _ranked(cells: Sequence[Cell], points: Sequence[Point] = ()) -> list[tuple[float, int]]:
    """Finite losses with their places, lowest first; of the finished points only where `points` are given."""
    return sorted(
        (cell.value, i)
        for i, cell in enumerate(cells)
        if isinstance(cell.value, float) and (not points or points[i].status is Status.FINISHED)
    )


def _marked(cells: Sequence[Cell], ranked: Sequence[tuple[float, int]]) -> tuple[Cell, ...]:
    """The cells with the lowest marked, where there is another to compare it with."""
    lowest = ranked[0][1] if len(ranked) > 1 else None
    return tuple(replace(cell, is_best=i == lowest) for i, cell in enumerate(cells))
