"""The text of `stats`: totals, bad lines, lengths, packing and caches, for rich's console."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from molgen_pretrain.data.summary import DataSummary
from molgen_pretrain.data.units import BadLine
from molgen_pretrain.metrics.formats import format_bytes, format_percent
from molgen_pretrain.tools.data_lengths import Bin, histogram
from molgen_pretrain.tools.data_packing import REFERENCE_LOOKAHEAD, PackingStats, fill_text
from molgen_pretrain.tools.data_stats import DataStats, SourceStats
from molgen_pretrain.tools.data_target import shown

_BAR_COLUMNS = 44
_EIGHTHS = "▏▎▍▌▋▊▉"
_BAD_LINES_SHOWN = 5

Row = tuple[str, ...]


def report(stats: DataStats) -> Iterator[RenderableType]:
    """Everything about the data; of a mixture a line for each source, then all of it together."""
    yield Text(stats.target.title, style="bold")
    yield Text(f"tokenizer: {shown(stats.target.cfg.data.tokenizer)} ({stats.target.tokenizer.size:,} tokens)")
    yield _table("Lines", ("files", "bytes", "lines", "bad", "units"), stats.parts, _totals)
    if stats.together.summary.bad_lines:
        yield from _bad_lines(stats.together.summary)
    columns: Row = ("tokens", "shortest", "mean", "median", "p95", "p99", "longest")
    yield _table("Tokens per unit", columns, stats.parts, _lengths)
    yield _histogram(stats)
    yield _packing_table(stats)
    yield from map(Text, _packing_notes(stats))
    yield from _epochs(stats)
    columns = ("lengths", "token ids", "ids kept", "unpacked", "folder")
    yield _table("Cache", columns, stats.parts, _caches)


def _table(
    title: str, columns: Sequence[str], parts: Sequence[SourceStats], rows_of: Callable[[SourceStats], Iterable[Row]]
) -> Table:
    """The rows of each source, which is named where there are several."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    has_names = len(parts) > 1
    for column in ("source", *columns) if has_names else columns:
        is_text = column in ("source", "folder")
        table.add_column(column, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    for part in parts:
        for row in rows_of(part):
            table.add_row(*((part.name, *row) if has_names else row))
    return table


def _totals(part: SourceStats) -> Iterator[Row]:
    summary, units = part.summary, part.lengths.units
    bad = summary.lines - units
    yield f"{summary.files:,}", format_bytes(summary.size_bytes), f"{summary.lines:,}", f"{bad:,}", f"{units:,}"


def _bad_lines(summary: DataSummary) -> Iterator[RenderableType]:
    table = Table(title="Bad lines", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in ("reason", "lines", "share", "rule"):
        table.add_column(column, justify="right" if column in ("lines", "share") else "left")
    for reason, count in sorted(summary.bad_lines.items(), key=lambda item: -item[1]):
        table.add_row(reason, f"{count:,}", format_percent(count / summary.lines), BadLine(reason).rule)
    yield table
    yield Text("\n  ".join(["the first:", *map(shown, summary.first_bad_lines[:_BAD_LINES_SHOWN])]))


def _lengths(part: SourceStats) -> Iterator[Row]:
    lengths = part.lengths
    yield (
        f"{lengths.tokens:,}", f"{lengths.shortest:,}", f"{lengths.mean:,.1f}", f"{lengths.median:,}",
        f"{lengths.p95:,}", f"{lengths.p99:,}", f"{lengths.longest:,}",
    )  # fmt: skip


def _histogram(stats: DataStats) -> Text:
    lengths = stats.together.lengths
    bins = histogram(stats.together.units_of_length)
    most = max(part.units for part in bins)
    marks = {"median": lengths.median, "p95": lengths.p95, "p99": lengths.p99}
    marks |= {f"seq_len {packing.seq_len:,}": packing.seq_len for packing in stats.together.packing}
    label_width = max(len("tokens"), *(len(_label(part)) for part in bins))
    count_width = max(len("units"), *(len(f"{part.units:,}") for part in bins))
    rows = [Text(f"  {'tokens':>{label_width}}  {'units':>{count_width}}", style="bold")]
    for part in bins:
        names = ", ".join(name for name, length in marks.items() if part.first <= length <= part.last)
        row = f"  {_label(part):>{label_width}}  {part.units:>{count_width},}  "
        rows.append(Text.assemble(row, (_bar(part.units, most), "cyan"), (f"  {names}" if names else "", "dim")))
    return Text("\n").join([*rows, Text()])


def _label(part: Bin) -> str:
    return f"{part.first:,}" if part.first == part.last else f"{part.first:,} to {part.last:,}"


def _bar(count: int, most: int) -> str:
    """A bar in eighths of a column; whatever is not nothing is seen."""
    eighths = max(round(8 * _BAR_COLUMNS * count / most), min(count, 1))
    full, rest = divmod(eighths, 8)
    return "█" * full + (_EIGHTHS[rest - 1] if rest else "")


def _packing_table(stats: DataStats) -> Table:
    steps = (f"steps of {size:,}" for size in stats.batch_sizes)
    columns = ("seq_len", "sequences", "filled", "best fit", "units each", "truncated", "dropped", *steps)

    def row(packing: PackingStats) -> Row:
        about = "~" if packing.is_estimate else ""
        return (
            f"{packing.seq_len:,}",
            f"{about}{packing.sequences:,}",
            f"{about}{fill_text(packing.fill)}",
            f"{about}{fill_text(packing.best_fit_fill)}",
            f"{about}{packing.units_per_sequence:.2f}",
            f"{packing.truncated_units:,}",
            f"{packing.dropped_units:,}",
            *(f"{about}{packing.sequences / size:,.1f}" for size in stats.batch_sizes),
        )

    return _table("Packing of an epoch", columns, stats.parts, lambda part: map(row, part.packing))


def _packing_notes(stats: DataStats) -> Iterator[str]:
    yield "filled: positions that are not padding; best fit: filled by a packer that takes the largest unit that fits"
    yield f"of {REFERENCE_LOOKAHEAD} pending ones; steps of N: updates per epoch at a global batch of N sequences"
    if any(packing.is_estimate for packing in stats.together.packing):
        yield "~: measured on whole blocks spread over the epoch"


def _epochs(stats: DataStats) -> Iterator[RenderableType]:
    """How often the run, as it is configured, sees the data."""
    steps = stats.target.steps
    if steps is None:
        return
    batch, packing = stats.batch_sizes[0], stats.together.packing[0]
    sequences = steps * batch
    text = f"training.steps={steps:,} of {batch:,} x {packing.seq_len:,} tokens: {sequences:,} sequences"
    if len(stats.sources) == 1:
        yield Text(f"{text}, {stats.together.epochs(sequences):,.2f} epochs")
        return

    def row(part: SourceStats) -> Iterator[Row]:
        drawn = round(sequences * part.share)
        yield format_percent(part.share), f"{drawn:,}", f"{part.epochs(sequences):,.2f}"

    yield _table(text, ("share", "sequences", "epochs"), stats.sources, row)


def _caches(part: SourceStats) -> Iterator[Row]:
    caches = part.caches
    ids = f"{format_bytes(caches.tokens_bytes)} as {caches.token_type}"
    kept, unpacked = "yes" if caches.has_tokens else "no", format_bytes(caches.unpacked_bytes)
    yield format_bytes(caches.lengths_bytes), ids, kept, unpacked, shown(caches.folder)
