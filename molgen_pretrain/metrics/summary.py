"""What a run came to, as a table for the terminal and as plain text for the log."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table

from molgen_pretrain.metrics.formats import format_count, format_duration, format_percent
from molgen_pretrain.metrics.rows import Row, Value


def summary_table(
    rows: Sequence[Row],
    milestones: Sequence[int],
    paths: Mapping[str, Path],
    unigram_entropy: float | None = None,
    wall_seconds: float | None = None,
) -> Group:
    """The closing summary of a run, a renderable for `rich.console.Console.print`.

    Figures of the whole run, a line per milestone step that was reached, and `paths` (label to place) last.
    `unigram_entropy` is that of the training data in nats per token: what a model would reach that knows
    only how frequent each token is. `wall_seconds` is the time of this run, restarts as the caller counts.
    """
    train = [row for row in rows if row.get("kind") == "train"]
    validation = {row["step"]: row for row in rows if row.get("kind") == "validation"}
    parts: list[RenderableType] = [_figures(train, list(validation.values()), unigram_entropy, wall_seconds)]
    reached = _last(train, "step")
    steps = [step for step in milestones if isinstance(reached, int) and step <= reached]
    if steps:
        parts.append(_milestone_table(steps, train, validation))
    parts.append(_places(paths))
    return Group(*parts)


def summary_text(summary: RenderableType, width: int = 240) -> str:
    """The same summary without colours or control codes; `width` only has to hold the longest path."""
    console = Console(width=width, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(summary)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _figures(
    train: Sequence[Row],
    validation: Sequence[Row],
    unigram_entropy: float | None,
    wall_seconds: float | None,
) -> Table:
    table = Table(title="Run summary", title_justify="left", title_style="bold", box=None, show_header=False)
    table.add_column(style="dim")
    table.add_column()
    step = _last(train, "step")
    table.add_row("steps", "none" if step is None else f"{step:,}")
    table.add_row("train loss", _loss_text(_last(train, "loss"), unigram_entropy))
    if validation:
        table.add_row("validation loss", _loss_text(_last(validation, "loss"), unigram_entropy))
    if unigram_entropy is not None:
        table.add_row("unigram entropy", f"{unigram_entropy:.4f} nats/token (token frequencies alone)")
    tokens = _last(train, "tokens")
    if isinstance(tokens, (int, float)):
        table.add_row("tokens", format_count(tokens))
    table.add_row("speed", _speed_text(train))
    if wall_seconds is not None:
        table.add_row("wall time", format_duration(wall_seconds))
    peaks = _numbers(train, "memory_gib")
    if peaks:
        table.add_row("peak memory", f"{max(peaks):.2f} GiB")
    return table


def _milestone_table(steps: Sequence[int], train: Sequence[Row], validation: Mapping[Value, Row]) -> Table:
    table = Table(title="Milestones", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("step", justify="right")
    table.add_column("phase")
    for heading in ("lr", "train loss", "validation loss"):
        table.add_column(heading, justify="right")
    trained = {row["step"]: row for row in train}
    for step in steps:
        row, validated = trained.get(step, {}), validation.get(step, {})
        table.add_row(
            f"{step:,}",
            str(row.get("phase") or "-"),
            _cell(row.get("lr"), ".2e"),
            _cell(row.get("loss"), ".4f"),
            _cell(validated.get("loss"), ".4f"),
        )
    return table


def _places(paths: Mapping[str, Path]) -> Table:
    table = Table(title="Where things are", title_justify="left", title_style="bold", box=None, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, path in paths.items():
        table.add_row(label, str(path))
    return table


def _loss_text(loss: Value, unigram_entropy: float | None) -> str:
    if not isinstance(loss, (int, float)):
        return "-"
    text = f"{loss:.4f} nats/token"
    if unigram_entropy is None or not math.isfinite(loss):
        return text
    side = "below" if loss <= unigram_entropy else "ABOVE"
    return f"{text}, {abs(unigram_entropy - loss):.4f} {side} the unigram entropy"


def _speed_text(train: Sequence[Row]) -> str:
    """Medians, so that the first steps (compilation, cold caches) do not count."""
    rates = _numbers(train, "tokens_per_second")
    if not rates:
        return "-"
    text = f"{format_count(statistics.median(rates))} tokens/s"
    per_device = _numbers(train, "tokens_per_second_per_device")
    if per_device and statistics.median(per_device) < statistics.median(rates):
        text += f" ({format_count(statistics.median(per_device))} per device)"
    mfu = _numbers(train, "mfu")
    return f"{text}, MFU {format_percent(statistics.median(mfu))}" if mfu else text


def _numbers(rows: Sequence[Row], key: str) -> list[float]:
    values = (row.get(key) for row in rows)
    return [float(value) for value in values if isinstance(value, (int, float)) and math.isfinite(value)]


def _last(rows: Sequence[Row], key: str) -> Value:
    return rows[-1].get(key) if rows else None


def _cell(value: Value, spec: str) -> str:
    return format(value, spec) if isinstance(value, (int, float)) else "-"
