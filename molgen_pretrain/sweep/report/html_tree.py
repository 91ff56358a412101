"""The tree of a sweep as part of the page: a lane per edge over a common axis of steps."""

from __future__ import annotations

import html
from collections.abc import Mapping

from molgen_pretrain.metrics.formats import format_duration
from molgen_pretrain.sweep.report.records import Status, Sweep
from molgen_pretrain.sweep.report.tree import Lane, lanes

_LANE_HEIGHT = 34  # pixels, as in style.css
_MOST_TICKS = 7


def tree(sweep: Sweep, swatches: Mapping[str, str]) -> str:
    """The drawing; `swatches` are the points' looks by edge. What of an edge is filled is trained."""
    last = max(edge.last for edge in sweep.edges)
    ticks = "".join(f'<span class="tick" style="left:{_percent(s, last)}">{s:,}</span>' for s in tick_steps(last))
    body = "".join(_lane(lane, last, swatches) for lane in lanes(sweep))
    return f'<div class="tree"><b></b><div class="track">{ticks}</div><span></span>{body}</div>'


def status_mark(status: Status) -> str:
    """The status behind a dot of its colour."""
    return f'<span class="status {_css_class(status)}">{status.value}</span>'


def tick_steps(last: int) -> list[int]:
    """Round steps from 0 on, and `last`, with room between them."""
    spacing = next(n * 10**k for k in range(20) for n in (1, 2, 5) if last / (n * 10**k) <= _MOST_TICKS)
    return [*(step for step in range(0, last, spacing) if last - step >= spacing / 2), last]


def _lane(lane: Lane, last: int, swatches: Mapping[str, str]) -> str:
    edge = lane.edge
    left = _percent(edge.start, last)
    done = _percent(edge.reached - edge.start, edge.last - edge.start)
    height = _LANE_HEIGHT * lane.rows_to_parent
    fork = f'<i class="fork" style="left:{left};height:{height}px"></i>' if height else ""
    whose = html.escape(", ".join(edge.points))
    return (
        f'<b title="{whose}">{swatches.get(edge.key, "")}{html.escape(edge.key)}</b>'
        f'<div class="track {_css_class(edge.status)}">{fork}<div class="edge" title="{whose}" '
        f'style="left:min({left}, 100% - 7px);width:{_percent(edge.last - edge.start, last)}">'
        f'<i style="width:{done}"></i></div></div>'
        f'<span class="said">{status_mark(edge.status)}'
        f'<span class="more"> · {edge.cost.steps:,} steps · {format_duration(edge.cost.seconds)}</span></span>'
    )


def _css_class(status: Status) -> str:
    return status.value.replace(" ", "-")


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3f}%" if whole else "100%"
