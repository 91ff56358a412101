"""What the lengths alone tell about a dataset, for logs and for the choice of seq_len."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from molgen_pretrain.data.line_index import IndexMeta


@dataclass(frozen=True, slots=True)
class DataSummary:
    """Totals per epoch. `units` are those trained on; `tokens` counts them as trained, separators included.

    `first_bad_lines` are `file:line reason`. Of a mixture these are totals over its `sources`.
    """

    files: int
    size_bytes: int
    lines: int
    units: int
    tokens: int
    truncated_units: int
    dropped_units: int
    bad_lines: dict[str, int]
    first_bad_lines: tuple[str, ...]
    sources: tuple[SourceSummary, ...] = ()

    @classmethod
    def of(cls, meta: IndexMeta, seq_len: int, drop_overflow: bool) -> DataSummary:
        """Costs as much as there are distinct lengths, not lines."""
        most = seq_len - 1
        overflowing = sum(units for length, units in meta.units_of_length.items() if length > most)
        fitting = {length: units for length, units in meta.units_of_length.items() if length <= most}
        truncated = 0 if drop_overflow else overflowing
        return cls(
            files=len(meta.files),
            size_bytes=sum(file.size for file in meta.files),
            lines=meta.lines,
            units=sum(fitting.values()) + truncated,
            tokens=sum((length + 1) * units for length, units in fitting.items()) + truncated * seq_len,
            truncated_units=truncated,
            dropped_units=overflowing - truncated,
            bad_lines=dict(sorted(meta.bad_lines.items())),
            first_bad_lines=tuple(
                f"{meta.files[bad.file].source}:{bad.line} {bad.reason}" for bad in meta.first_bad_lines
            ),
        )

    @classmethod
    def of_mixture(cls, sources: Sequence[SourceSummary]) -> DataSummary:
        """The totals over sources, with the sources."""
        parts = [source.summary for source in sources]
        bad_lines: Counter[str] = Counter()
        for part in parts:
            bad_lines.update(part.bad_lines)
        return cls(
            files=sum(part.files for part in parts),
            size_bytes=sum(part.size_bytes for part in parts),
            lines=sum(part.lines for part in parts),
            units=sum(part.units for part in parts),
            tokens=sum(part.tokens for part in parts),
            truncated_units=sum(part.truncated_units for part in parts),
            dropped_units=sum(part.dropped_units for part in parts),
            bad_lines=dict(sorted(bad_lines.items())),
            first_bad_lines=tuple(line for part in parts for line in part.first_bad_lines),
            sources=tuple(sources),
        )

    def describe(self) -> str:
        """One line: files, lines, units, tokens, and what happens to units that are too long."""
        text = (
            f"{self.files} file{'s' * (self.files > 1)} ({self.size_bytes / 1e6:,.1f} MB), {self.lines:,} lines,"
            f" {self.units:,} units, {self.tokens / 1e6:,.1f} M tokens per epoch"
        )
        if self.truncated_units:
            text += f"; {self.truncated_units:,} units are longer than a sequence and truncated"
        if self.dropped_units:
            text += f"; {self.dropped_units:,} units are longer than a sequence and dropped"
        return text

    def describe_bad_lines(self) -> str | None:
        """One line on what is skipped and where the first of it is; None if every line is good."""
        if not self.bad_lines:
            return None
        total = sum(self.bad_lines.values())
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.bad_lines.items())
        first = ", ".join(self.first_bad_lines)
        return f"{total:,} of {self.lines:,} lines are bad and skipped: {reasons}; first: {first}"

    def describe_sources(self) -> list[str]:
        """One line per source of a mixture."""
        return [source.describe() for source in self.sources]


@dataclass(frozen=True, slots=True)
class SourceSummary:
    """One source of a mixture. `share`: its part of the sequences."""

    name: str
    share: float
    summary: DataSummary

    def describe(self) -> str:
        epochs = self.share * 1e9 / self.summary.tokens
        return (
            f"{self.name}: {100 * self.share:.4g} % of the sequences; {self.summary.describe()};"
            f" {epochs:.3g} epochs per 1,000 M tokens trained"
        )
