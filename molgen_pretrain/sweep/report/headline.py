"""What a report says first: the figures that somebody reads who reads nothing else."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from molgen_pretrain.metrics.formats import format_count, format_duration, format_percent
from molgen_pretrain.sweep.report.records import Report, Status
from molgen_pretrain.sweep.report.table import best_point, loss_text

COST_NOTE = (
    "Steps and time are those of the rows logged: training, validation and saving, without start-up, "
    "and each shared part once."
)


@dataclass(frozen=True)
class Figure:
    label: str
    value: str
    beside: str = ""

    @property
    def text(self) -> str:
        return f"{self.value} ({self.beside})" if self.beside else self.value


def figures(report: Report) -> Iterator[Figure]:
    """Points by status, steps and what sharing saves, the best point, tokens and time."""
    counts = {status: report.count(status) for status in Status}
    finished = counts.pop(Status.FINISHED)
    others = ", ".join(f"{count} {status.value}" for status, count in counts.items() if count)
    yield Figure("points finished", f"{finished} of {len(report.points)}", others)
    spent = report.spent
    yield Figure("steps trained", f"{spent.steps:,}", f"of {report.planned_steps:,} planned")
    if report.saving > 0:
        alone = f"{report.planned_steps:,} steps instead of {report.independent_steps:,}"
        yield Figure("saved by sharing", format_percent(report.saving), alone)
    if best := best_point(report):
        point, loss = best
        yield Figure("best validation loss", loss_text(loss), point.name)
    yield Figure("tokens trained", format_count(spent.tokens))
    yield Figure("training time", format_duration(spent.seconds), "sum over all runs")


def commands(report: Report) -> list[str]:
    """What was typed to start each sweep, fit for a shell."""
    return [f"python -m molgen_pretrain -m {shlex.join(sweep.command)}" for sweep in report.sweeps if sweep.command]


def times(report: Report) -> str:
    """When it all began, and of which moment the report is."""
    began = [f"{sweep.created:%Y-%m-%d %H:%M}" for sweep in report.sweeps if sweep.created]
    return f"{f'started {min(began)}, ' if began else ''}as of {report.made_at:%Y-%m-%d %H:%M:%S}"


def problems(report: Report) -> Iterator[tuple[str, str, bool]]:
    """Which part or run, what is wrong with it, and whether it failed of it; the failed ones first."""
    parts = [
        (edge.key if len(report.sweeps) == 1 else f"{sweep.name}/{edge.key}", edge)
        for sweep in report.sweeps
        for edge in sweep.edges
    ]
    for name, edge in parts:
        if edge.error:
            yield name, f"failed after step {edge.reached:,}: {edge.error}", True
    for name, edge in parts:
        for note in edge.run.notes:
            yield name, note, False
