"""The report of a sweep, or of any runs side by side: report.html, report.md and report.png."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from molgen_pretrain.errors import UserError
from molgen_pretrain.sweep.report.collect import collect
from molgen_pretrain.sweep.report.markdown import markdown
from molgen_pretrain.sweep.report.records import Report
from molgen_pretrain.sweep.report.table import point_table

_TRIES = 3  # at most so often it is made anew since a run has ended meanwhile


@dataclass(frozen=True)
class ReportFiles:
    """Where a report is written."""

    folder: Path

    @property
    def html(self) -> Path:
        return self.folder / "report.html"

    @property
    def markdown(self) -> Path:
        return self.folder / "report.md"

    @property
    def picture(self) -> Path:
        return self.folder / "report.png"


def make_report(folders: Sequence[Path], out: Path | None = None) -> ReportFiles:
    """Compare sweeps and runs, into `out` (default: the one folder that is given).

    Runs may be under way, unfinished or damaged, and several processes may do this at once, also on several
    nodes: every file is replaced as a whole, and whoever writes last has seen how every run ended.

    Raises UserError for folders that hold no runs, and where `out` is needed; OSError where it cannot be written.
    """
    if out is None and len(folders) != 1:
        raise UserError(f"{len(folders)} folders: give --out FOLDER, since the report belongs into none of them")
    files = ReportFiles(folders[0] if out is None else out)
    for _ in range(_TRIES):
        report = collect(folders)
        files.folder.mkdir(parents=True, exist_ok=True)
        _write(report, files)
        if all(edge.run.is_current for edge in report.edges):
            break
    return files


def _write(report: Report, files: ReportFiles) -> None:
    # matplotlib takes half a second to load, and those who sweep do not always get as far as this.
    from molgen_pretrain.sweep.report.curves import all_curves
    from molgen_pretrain.sweep.report.html import page
    from molgen_pretrain.sweep.report.picture import draw_report

    table = point_table(report)
    curves = all_curves([point.run for point in report.points])
    with _replacing(files.html) as aside:
        aside.write_text(page(report, table, curves), encoding="utf-8")
    with _replacing(files.markdown) as aside:
        aside.write_text(markdown(report, table), encoding="utf-8")
    with _replacing(files.picture) as aside:
        draw_report(report, curves, aside)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A name of one's own to write to, which takes the place of `path` once all is written."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
