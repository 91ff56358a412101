"""The opened sources of a dataset, and their units numbered through."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molgen_pretrain.data.cursor import SequenceCursor
from molgen_pretrain.data.files import resolve_files
from molgen_pretrain.data.lengths import open_line_index
from molgen_pretrain.data.line_index import LineIndex
from molgen_pretrain.data.materialise import CacheWriter, TextWriter
from molgen_pretrain.data.mixture import MixtureCursor, Source, start_positions, weight_shares
from molgen_pretrain.data.permutation import derive_key
from molgen_pretrain.data.plan import EpochPlanner, OrderSettings
from molgen_pretrain.data.position import Position, SourcePosition
from molgen_pretrain.data.sequences import Layout, Sequences
from molgen_pretrain.data.summary import DataSummary, SourceSummary
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.data.units import CANONICAL_FIELD, EMBEDDED_FIELD
from molgen_pretrain.errors import UserError


@dataclass(frozen=True)
class OpenSource:
    """What it takes to plan and materialise a source's sequences, which are `share` of the mixture's."""

    name: str
    share: Fraction
    index: LineIndex
    planner: EpochPlanner
    writer: CacheWriter | TextWriter
    summary: DataSummary


class Corpus:
    """Sources in one numbering: unit ids are line numbers, those of a later source follow the earlier ones.

    Of several sources each has a name of its own; a single one has none.
    """

    def __init__(self, sources: Sequence[OpenSource]) -> None:
        self.sources = tuple(sources)
        self._first_units = [0, *accumulate(source.index.lines for source in sources)]

    def summary(self) -> DataSummary:
        if len(self.sources) == 1:
            return self.sources[0].summary
        return DataSummary.of_mixture([SourceSummary(s.name, float(s.share), s.summary) for s in self.sources])

    def starts(self, position: Position) -> dict[str, SourcePosition]:
        """Where each source begins, see `mixture.start_positions`.

        Raises UserError for a position of a single source in a mixture, and the reverse.
        """
        names = [source.name for source in self.sources]
        if position.sources and ("" in position.sources) != ("" in names):
            raise UserError(
                f"data position of {_describe(position.sources)} cannot be continued with {_describe(names)}: keep"
                " data.sources a mixture or a single source, or start a new run"
            )
        return start_positions(position, {source.name: source.share for source in self.sources})

    def cursor(self, starts: Mapping[str, SourcePosition], infinite: bool) -> MixtureCursor:
        cursors = {s.name: SequenceCursor(s.planner, starts[s.name], infinite) for s in self.sources}
        return MixtureCursor(cursors, self._first_units[:-1], [source.share for source in self.sources])

    @property
    def has_tokens(self) -> bool:
        """Whether all units are in token caches."""
        return all(isinstance(source.writer, CacheWriter) for source in self.sources)

    def write(self, ids: NDArray, sequences: Sequences, layout: Layout) -> None:
        """Puts the ids of every unit where the layout says; ids [positions] as in `materialise`."""
        for source, here, lines in self._parts(sequences.units):
            source.writer.write(ids, lines, sequences.counts[here], layout.places[here], layout.kept[here])

    def fetch(self, sequences: Sequences, layout: Layout) -> NDArray[np.int64]:
        """`CacheWriter.fetch` of every unit, [units]; only with `has_tokens`."""
        starts = np.empty_like(sequences.units)
        for source, here, lines in self._parts(sequences.units):
            starts[here] = _cache_writer(source).fetch(lines, layout.kept[here])
        return starts

    def copy(self, ids: NDArray, sequences: Sequences, layout: Layout, starts: NDArray[np.int64]) -> None:
        """As `write`, of units that `fetch` gave the starts of."""
        for source, here, _ in self._parts(sequences.units):
            _cache_writer(source).copy(ids, starts[here], layout.places[here], layout.kept[here])

    def _parts(self, units: NDArray[np.int64]) -> Iterator[tuple[OpenSource, Any, NDArray[np.int64]]]:
        """(source, which units are from it, their lines in it) of the sources that have any."""
        if len(self.sources) == 1:
            yield self.sources[0], slice(None), units
            return
        for source, first in zip(self.sources, self._first_units, strict=False):
            lines = units - first
            here = np.flatnonzero((lines >= 0) & (lines < source.index.lines))
            if here.size:
                yield source, here, lines[here]

    def sequences_in_epoch(self, epoch: int) -> int:
        planners = [source.planner for source in self.sources]
        return sum(len(planner.plan_block(epoch, block)) for planner in planners for block in range(planner.blocks))

    def locate(self, unit: int) -> str:
        """`file:line`, 1-based."""
        source = bisect_right(self._first_units, unit) - 1
        return self.sources[source].index.locate(unit - self._first_units[source])

    def epochs(self, lines_passed: Mapping[str, float]) -> tuple[float, dict[str, float]]:
        """(passes over the lines of all sources, passes over each source of a mixture), fractional."""
        whole = sum(lines_passed.values()) / self._first_units[-1]
        if len(self.sources) == 1:
            return whole, {}
        return whole, {s.name: lines_passed[s.name] / s.index.lines for s in self.sources}

    def fingerprint(self, tokenizer_fingerprint: str) -> str:
        """Changes when the order of sequences does."""
        prints = [source.planner.fingerprint(tokenizer_fingerprint) for source in self.sources]
        if len(prints) == 1:
            return prints[0]
        parts = [(s.name, str(s.share), fingerprint) for s, fingerprint in zip(self.sources, prints, strict=True)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def open_corpus(
    sources: Sequence[Source],
    settings: OrderSettings,
    tokenizer: UnitTokenizer,
    cache_dir: Path,
    *,
    min_emb_len: int,
    stop_at_bad_line: bool,
    token_cache: str,
    budget_bytes: int | None,
    processes: int | None,
    setting: str,
) -> Corpus:
    """Opens each source's line index, by the one-time pass where it is due; the options are that pass's.

    A single source has neither name nor weight. Raises UserError for mixtures that cannot be (names that are
    missing or twice there, weights that are no positive numbers), and for a source without a usable line, which
    would never give its turn.
    """
    names = [source.name for source in sources] if len(sources) > 1 else [""]
    if len(names) > 1 and (len(set(names)) < len(names) or "" in names):
        raise UserError(f"data.sources: the names are {', '.join(map(repr, names))}; give each one of its own")
    shares = weight_shares([source.weight for source in sources])
    opened = []
    for source, name, share in zip(sources, names, shares, strict=True):
        place = f"data.sources {name!r}" if name else setting
        index = open_line_index(
            resolve_files(source.files, place),
            tokenizer,
            cache_dir,
            min_emb_len=min_emb_len,
            stop_at_bad_line=stop_at_bad_line,
            token_cache=token_cache,
            budget_bytes=budget_bytes,
            processes=processes,
        )
        if budget_bytes is not None and index.has_tokens:
            budget_bytes = max(budget_bytes - index.tokens.nbytes, 0)
        summary = DataSummary.of(index.meta, settings.seq_len, settings.drop_overflow)
        if not summary.units:
            raise UserError(_no_units_message(place, summary))
        writer = CacheWriter(index) if index.has_tokens else TextWriter(index, tokenizer, min_emb_len)
        planner = EpochPlanner(index, replace(settings, seed=_seed_of(name, settings.seed)))
        opened.append(OpenSource(name, share, index, planner, writer, summary))
    return Corpus(opened)


def _cache_writer(source: OpenSource) -> CacheWriter:
    if not isinstance(source.writer, CacheWriter):
        raise ValueError(f"source {source.name!r} has no token cache in use")
    return source.writer


def _seed_of(name: str, seed: int) -> int:
    """Each source of a mixture has its own: two of one size would have the same order of line numbers."""
    return derive_key(seed, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")) if name else seed


def _describe(names: Collection[str]) -> str:
    return "a single source" if "" in names else f"a mixture of {', '.join(names)}"


def _no_units_message(setting: str, summary: DataSummary) -> str:
    reason = summary.describe_bad_lines() or "the files are empty"
    if summary.dropped_units:
        reason = f"{summary.dropped_units} units are longer than data.seq_len - 1 tokens and dropped"
    return (
        f"{setting}: no usable line in {summary.files} files: {reason}; a line is a JSON object with"
        f" {CANONICAL_FIELD} and {EMBEDDED_FIELD}"
    )
