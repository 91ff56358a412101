"""From directories to what a report is about."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from molgen_pretrain.errors import UserError
from molgen_pretrain.run_directory import RunDirectory
from molgen_pretrain.sweep.directory import SweepDirectory
from molgen_pretrain.sweep.report.records import EdgeRecord, Point, Report, Status, Sweep
from molgen_pretrain.sweep.report.run import read_run

logger = logging.getLogger(__name__)


def collect(folders: Sequence[Path]) -> Report:
    """Read sweeps and runs.

    Raises UserError for a folder that is not there, or that is neither sweep nor run where none is; where others
    are, it is left out and named in the log, so that `runs/*` works.
    """
    sweeps, runs = [], []
    for folder in {folder.resolve(): folder for folder in folders}.values():
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give sweep or run directories")
        if (sweep := SweepDirectory(folder)).manifest.exists():
            sweeps.append(_read_sweep(sweep))
        elif _is_run(folder):
            runs.append(folder)
        else:
            logger.warning("%s is neither a sweep nor a run and is left out", folder)
    if runs:
        sweeps.append(_loose(runs))
    if not sweeps:
        names = ", ".join(map(str, folders)) or "nothing given"
        raise UserError(f"{names}: neither a sweep (sweep.json) nor a run; give such folders, for example runs/*")
    return Report(tuple(_told_apart(sweeps)), datetime.now())


def _is_run(folder: Path) -> bool:
    run = RunDirectory(folder)
    return any(path.exists() for path in (run.config, run.facts, run.metrics, run.log(0)))


def _read_sweep(directory: SweepDirectory) -> Sweep:
    """Raises UserError where sweep.json is damaged."""
    try:
        manifest = directory.read_manifest()
        edges = {item["key"]: _edge(directory.root, item) for item in manifest["edges"]}
        return Sweep(
            name=manifest["name"],
            command=tuple(manifest["command"]),
            created=datetime.fromisoformat(manifest["created"]),
            planned_steps=manifest["planned_steps"],
            independent_steps=manifest["independent_steps"],
            points=tuple(_point(item, edges) for item in manifest["points"]),
            edges=tuple(edges.values()),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{directory.manifest}: damaged ({type(error).__name__}: {error}); "
            "the sweep's own command writes it again, or give the run directories one by one"
        ) from error


def _edge(root: Path, item: Mapping[str, Any]) -> EdgeRecord:
    return EdgeRecord(
        key=item["key"],
        start=item["start"],
        end=item["end"],
        points=tuple(item["points"]),
        parent=item["parent"],
        run=read_run(RunDirectory(root / item["folder"])),
    )


def _point(item: Mapping[str, Any], edges: Mapping[str, EdgeRecord]) -> Point:
    leaf = edges[item["name"]]
    ancestors = []
    parent = leaf.parent
    while parent is not None:
        ancestors.append(edges[parent])
        parent = edges[parent].parent
    # Before its own part begins, a point's curve is that of the last shared part that has begun.
    run = next((edge.run for edge in (leaf, *ancestors) if len(edge.run.train.steps)), leaf.run)
    unfinished = [edge for edge in reversed(ancestors) if edge.status is not Status.FINISHED]
    waits_for = unfinished[0] if unfinished and leaf.status is Status.NOT_STARTED else None
    return Point(item["name"], tuple(item["overrides"]), leaf, run, waits_for, item["steps"])


def _loose(folders: Sequence[Path]) -> Sweep:
    """Runs that were started one by one, side by side."""
    points = []
    for name, folder in zip(_names(folders), folders, strict=True):
        run = read_run(RunDirectory(folder))
        edge = EdgeRecord(name, run.train.begin, run.planned_steps, (name,), None, run)
        points.append(Point(name, run.overrides, edge, run, None, run.planned_steps))
    steps = sum(max(0, point.steps - point.edge.start) for point in points if point.steps is not None)
    return Sweep(
        name=points[0].name if len(points) == 1 else f"{len(points)} runs",
        command=(),
        created=None,
        planned_steps=steps,
        independent_steps=steps,
        points=tuple(points),
        edges=tuple(point.edge for point in points),
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names, with as much of the path as tells them apart."""
    paths = [folder.absolute().parts for folder in folders]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            break
    return names


def _told_apart(sweeps: Sequence[Sweep]) -> Iterator[Sweep]:
    """Points of the same name in two sweeps are called by both names."""
    counts = Counter(point.name for sweep in sweeps for point in sweep.points)
    for sweep in sweeps:
        names = (f"{sweep.name}/{point.name}" if counts[point.name] > 1 else point.name for point in sweep.points)
        points = (replace(point, name=name) for point, name in zip(sweep.points, names, strict=True))
        yield replace(sweep, points=tuple(points))
