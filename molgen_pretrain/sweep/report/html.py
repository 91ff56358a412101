"""report.html: one page with everything in it, which asks no server for anything."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from importlib import resources
from string import Template

import orjson
from plotly.offline import get_plotlyjs

from molgen_pretrain.sweep.report.curves import Curve, Curves, close_up
from molgen_pretrain.sweep.report.headline import COST_NOTE, Figure, commands, figures, problems, times
from molgen_pretrain.sweep.report.html_tree import status_mark, tree
from molgen_pretrain.sweep.report.palette import DARK, DASHES, LIGHT, look
from molgen_pretrain.sweep.report.records import Report
from molgen_pretrain.sweep.report.table import Cell, Column, PointTable

_STROKES = {"solid": "", "dash": "5 3", "dot": "1.5 3", "dashdot": "6 3 1.5 3"}  # of the legend, as Plotly's dashes


def page(report: Report, table: PointTable, curves: Sequence[Curves]) -> str:
    """The whole page; names and messages may hold whatever characters they like."""
    return Template(_asset("page.html")).substitute(
        title=_text(report.title),
        palette=_palette(),
        style=_asset("style.css"),
        commands="".join(f"<code>{_text(command)}</code>" for command in commands(report)),
        figures="".join(map(_figure, figures(report))),
        problems=_problems(report),
        legend="".join(_chip(i, point.name) for i, point in enumerate(report.points)),
        table=_table(table),
        cost_note=_text(COST_NOTE),
        trees="".join(_trees(report)),
        times=_text(times(report)),
        data=_data(report, curves),
        plotly=get_plotlyjs(),
        script=_asset("script.js"),
    )


def _asset(name: str) -> str:
    return (resources.files(__package__) / "page" / name).read_text(encoding="utf-8")


def _text(text: str) -> str:
    return html.escape(text, quote=True)


def _palette() -> str:
    light, dark = (" ".join(f"--point-{i}: {color};" for i, color in enumerate(colors)) for colors in (LIGHT, DARK))
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"


def _figure(figure: Figure) -> str:
    return (
        f'<div class="figure"><span>{_text(figure.label)}</span><strong>{_text(figure.value)}</strong>'
        f"<small>{_text(figure.beside)}</small></div>"
    )


def _problems(report: Report) -> str:
    found = list(problems(report))
    if not found:
        return ""
    lines = "".join(
        f"<li{' class=failed' * failed}><b>{_text(name)}</b> {_text(text)}</li>" for name, text, failed in found
    )
    failed = " failed" if any(failed for _, _, failed in found) else ""
    return f'<section class="problems{failed}"><h2>Problems</h2><ul>{lines}</ul></section>'


def _swatch(index: int) -> str:
    color, dash = look(index)
    return (
        f'<svg class="swatch" aria-hidden="true"><line x1="1" x2="23" y1="5" y2="5" '
        f'stroke="var(--point-{color})" stroke-dasharray="{_STROKES[DASHES[dash]]}"/></svg>'
    )


def _chip(index: int, name: str) -> str:
    content = f"{_swatch(index)}<span>{_text(name)}</span>"
    return f'<button type="button" data-point="{index}" aria-pressed="true">{content}</button>'


def _table(table: PointTable) -> str:
    heads = [_head(Column("point", (), is_number=False)), *map(_head, table.columns)]
    rows = []
    for i, point in enumerate(table.points):
        name = f'<td data-sort="{_text(point.name)}">{_swatch(i)}<span>{_text(point.name)}</span></td>'
        rows.append(f"<tr>{name}{''.join(_cell(column, column.cells[i]) for column in table.columns)}</tr>")
    feet = []
    for i, label in enumerate(table.foot):
        sums = (column.foot[i] if column.foot else "" for column in table.columns)
        feet.append(f"<tr><td>{_text(label)}</td>{''.join(f'<td class=number>{text}</td>' for text in sums)}</tr>")
    return (
        f"<table><thead><tr>{''.join(heads)}</tr></thead><tbody>{''.join(rows)}</tbody>"
        f"<tfoot>{''.join(feet)}</tfoot></table>"
    )


def _head(column: Column) -> str:
    section = f"<small>{_text(column.section)}</small>" if column.section else ""
    number = ' class="number"' if column.is_number else ""
    button = f'<button type="button" title="{_text(column.meaning)}">{section}{_text(column.title)}</button>'
    return f'<th scope="col"{number}>{button}</th>'


def _cell(column: Column, cell: Cell) -> str:
    classes = [*(["number"] if column.is_number else []), *(["best"] if cell.is_best else [])]
    sort = "" if cell.value is None else f' data-sort="{_text(str(cell.value))}"'
    beside = f"<small>{_text(cell.beside)}</small>" if cell.beside else ""
    text = _text(cell.text) if cell.status is None else status_mark(cell.status)
    return f'<td class="{" ".join(classes)}"{sort}>{text}{beside}</td>'


def _trees(report: Report) -> Iterator[str]:
    first = 0
    for sweep in report.sweeps:
        swatches = {point.edge.key: _swatch(first + i) for i, point in enumerate(sweep.points)}
        first += len(sweep.points)
        if sweep.is_shared:
            title = "Shared parts" if len(report.sweeps) == 1 else f"Shared parts of {sweep.name}"
            yield f"<section><h2>{_text(title)}</h2>{tree(sweep, swatches)}</section>"


def _data(report: Report, curves: Sequence[Curves]) -> str:
    """What the script draws, as JSON that cannot end its script element early."""
    points = []
    for i, (point, of_point) in enumerate(zip(report.points, curves, strict=True)):
        color, dash = look(i)
        drawn = {name: _series(curve) for name, curve in vars(of_point).items()}
        points.append({"name": point.name, "color": color, "dash": DASHES[dash], **drawn})
    losses = ("raw", "smoothed", "validation")
    ranges = {name: close_up([vars(of_point)[name] for of_point in curves]) for name in losses}
    content = {"points": points, "closeUp": ranges}
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY).decode().replace("<", "\\u003c")


def _series(curve: Curve) -> dict[str, object]:
    """Values to six digits, more than a screen shows; null (orjson's NaN) breaks the line."""
    values = [float(f"{value:.6g}") for value in curve.values.tolist()]
    return {"steps": curve.steps, "tokens": curve.tokens, "values": values}
