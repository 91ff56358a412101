"""The figures of `stats`, from the line index alone: per source, and of all sources together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from molgen_pretrain.data.corpus import OpenSource
from molgen_pretrain.data.summary import DataSummary, SourceSummary
from molgen_pretrain.tools.data_caches import CacheSizes
from molgen_pretrain.tools.data_lengths import LengthStats, histogram
from molgen_pretrain.tools.data_packing import PackingStats, measure_packing
from molgen_pretrain.tools.data_target import DataTarget


@dataclass(frozen=True, kw_only=True)
class SourceStats:
    """One source, or all of them: `share` is that of the sequences drawn, `packing` has one entry per seq_len."""

    name: str
    share: float
    summary: DataSummary
    units_of_length: dict[int, int]
    packing: tuple[PackingStats, ...]
    caches: CacheSizes

    @cached_property
    def lengths(self) -> LengthStats:
        return LengthStats.of(self.units_of_length)

    def epochs(self, sequences: int) -> float:
        """Of this source, while so many sequences of the first seq_len are drawn from all sources."""
        return sequences * self.share / self.packing[0].sequences


@dataclass(frozen=True, kw_only=True)
class DataStats:
    target: DataTarget
    batch_sizes: tuple[int, ...]
    sources: tuple[SourceStats, ...]
    together: SourceStats

    @property
    def parts(self) -> tuple[SourceStats, ...]:
        """Each source, and all of them together where there are several."""
        return self.sources if len(self.sources) == 1 else (*self.sources, self.together)

    def as_json(self) -> dict[str, Any]:
        """Everything, with names as in the dataclasses."""
        return {
            "data": self.target.title,
            "tokenizer": self.target.cfg.data.tokenizer,
            "tokenizer_size": self.target.tokenizer.size,
            "sources": [_source_json(source, self.batch_sizes) for source in self.sources],
            "together": _source_json(self.together, self.batch_sizes),
        }


def collect(target: DataTarget, seq_lens: Sequence[int], batch_sizes: Sequence[int]) -> DataStats:
    """Makes the one-time pass where it is still due, and packs an epoch, or a part of it, for each seq_len."""
    opened = [target.open(seq_len).sources for seq_len in seq_lens]
    sources = []
    for same_source in zip(*opened, strict=True):
        packing = tuple(
            measure_packing(source, seq_len, shuffle_lines=target.shuffle_lines)
            for source, seq_len in zip(same_source, seq_lens, strict=True)
        )
        sources.append(_source_stats(same_source[0], packing, target.tokenizer.size))
    return DataStats(target=target, batch_sizes=tuple(batch_sizes), sources=tuple(sources), together=_together(sources))


def _source_stats(source: OpenSource, packing: tuple[PackingStats, ...], tokenizer_size: int) -> SourceStats:
    return SourceStats(
        name=source.name,
        share=float(source.share),
        summary=source.summary,
        units_of_length=source.index.meta.units_of_length,
        packing=packing,
        caches=CacheSizes.of(source.index, tokenizer_size),
    )


def _together(sources: Sequence[SourceStats]) -> SourceStats:
    if len(sources) == 1:
        return sources[0]
    units_of_length: Counter[int] = Counter()
    for source in sources:
        units_of_length.update(source.units_of_length)
    return SourceStats(
        name="together",
        share=1.0,
        summary=DataSummary.of_mixture([SourceSummary(s.name, s.share, s.summary) for s in sources]),
        units_of_length=dict(units_of_length),
        packing=tuple(PackingStats.total(parts) for parts in zip(*(s.packing for s in sources), strict=True)),
        caches=CacheSizes.total([source.caches for source in sources]),
    )


def _source_json(source: SourceStats, batch_sizes: Sequence[int]) -> dict[str, Any]:
    summary = source.summary
    packing = []
    for part in source.packing:
        steps = {str(size): part.sequences / size for size in batch_sizes}
        packing.append({**asdict(part), "units_per_sequence": part.units_per_sequence, "steps_per_epoch": steps})
    return {
        "name": source.name,
        "share": source.share,
        "files": summary.files,
        "size_bytes": summary.size_bytes,
        "lines": summary.lines,
        "bad_lines": summary.bad_lines,
        "first_bad_lines": summary.first_bad_lines,
        "lengths": asdict(source.lengths),
        "histogram": [asdict(part) for part in histogram(source.units_of_length)],
        "units_of_length": source.units_of_length,
        "packing": packing,
        "caches": asdict(source.caches),
    }
