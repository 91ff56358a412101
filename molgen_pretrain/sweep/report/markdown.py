"""report.md: the comparison as text, to be pasted into an issue or a chat."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from molgen_pretrain.sweep.report.headline import COST_NOTE, commands, figures, problems, times
from molgen_pretrain.sweep.report.records import Report
from molgen_pretrain.sweep.report.table import Cell, Column, PointTable
from molgen_pretrain.sweep.report.tree import tree_text


def markdown(report: Report, table: PointTable) -> str:
    """Headline, problems, table, milestones and trees."""
    parts = [
        f"# {_escaped(report.title)}",
        *(_block([command]) for command in commands(report)),
        "\n".join(f"- **{figure.label}**: {_escaped(figure.text)}" for figure in figures(report)),
    ]
    if found := list(problems(report)):
        parts += ["## Problems", "\n".join(f"- **{_escaped(name)}** {_escaped(text)}" for name, text, _ in found)]
    parts += ["## Points", _table(table, (*table.settings, *table.results, *table.costs), foot=table.foot)]
    if table.milestones:
        parts += ["## At milestones", _table(table, table.milestones)]
    for sweep in report.sweeps:
        if sweep.is_shared:
            parts += [f"## Shared parts of {_escaped(sweep.name)}", _block(tree_text(sweep))]
    parts.append(f"{COST_NOTE} ({times(report)})")
    return "\n\n".join(parts) + "\n"


def _table(table: PointTable, columns: Sequence[Column], foot: Sequence[str] = ()) -> str:
    """Columns without any entry are left out."""
    shown = [column for column in columns if any(cell.text for cell in column.cells)]
    rules = ("--:" if column.is_number else ":--" for column in shown)
    lines = [
        _line(["point", *(_escaped(column.section + column.title) for column in shown)]),
        _line([":--", *rules]),
    ]
    for i, point in enumerate(table.points):
        lines.append(_line([_escaped(point.name), *(_cell(column.cells[i]) for column in shown)]))
    for i, label in enumerate(foot):
        lines.append(_line([f"*{label}*", *(column.foot[i] if column.foot else "" for column in shown)]))
    return "\n".join(lines)


def _cell(cell: Cell) -> str:
    text = f"**{cell.text}** (best)" if cell.is_best else _escaped(cell.text)
    return f"{text} ({_escaped(cell.beside)})" if cell.beside else text


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _block(lines: Iterable[str]) -> str:
    """Lines as they are; the fence is longer than any row of backticks in them."""
    text = "\n".join(lines)
    fence = "`" * max(3, *(len(ticks) + 1 for ticks in re.findall("`+", text)), 0)
    return f"{fence}text\n{text}\n{fence}"


def _escaped(text: str) -> str:
    """`text` on one line, without a meaning for Markdown or HTML. Underscores within words have none."""
    text = re.sub(r"([\\`*\[\]<>|~&#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", text)
    return re.sub(r"\s*\n\s*", " ", text.strip())
