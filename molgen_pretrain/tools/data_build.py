"""`build`: the one-time pass ahead of a run, and what it leaves in the cache."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.text import Text

from molgen_pretrain.config.choices import TokenCache
from molgen_pretrain.config.schema import DataConfig
from molgen_pretrain.data.corpus import OpenSource
from molgen_pretrain.data.token_cache import TOKENS_FOLDER
from molgen_pretrain.metrics.formats import format_bytes, format_count
from molgen_pretrain.tools.data_caches import CacheSizes
from molgen_pretrain.tools.data_target import DataTarget, shown


def build(target: DataTarget) -> Iterator[Text]:
    """Makes the pass over each source where it is still due; says what stands where, and why in which mode."""
    before = _standing(target.cache_dir)
    start = time.monotonic()
    sources = target.open(target.cfg.data.seq_len).sources
    seconds = time.monotonic() - start
    yield Text(target.title, style="bold")
    built = [source for source in sources if not _parts(source) <= before]
    for source in sources:
        yield from (Text(f"  {line}") for line in _describe(source, target, is_new=source in built))
    if built:
        yield Text(f"  {_rate(built, seconds)}")


def _standing(cache_dir: Path) -> set[Path]:
    """The folders of all line indices, and of the token ids in them."""
    return {*cache_dir.glob("data/*"), *cache_dir.glob(f"data/*/{TOKENS_FOLDER}")}


def _parts(source: OpenSource) -> set[Path]:
    folder = source.index.folder
    return {folder, folder / TOKENS_FOLDER} if source.index.has_tokens else {folder}


def _describe(source: OpenSource, target: DataTarget, *, is_new: bool) -> Iterator[str]:
    summary, meta = source.summary, source.index.meta
    units = sum(meta.units_of_length.values())
    totals = f"{summary.lines:,} lines, {units:,} units, {format_count(meta.tokens)} tokens"
    yield f"{source.name}: {totals}" if source.name else totals
    if bad_lines := summary.describe_bad_lines():
        yield bad_lines
    caches = CacheSizes.of(source.index, target.tokenizer.size)
    unpacked = f", unpacked files {format_bytes(caches.unpacked_bytes)}" if caches.unpacked_bytes else ""
    ids = f", token ids {format_bytes(caches.tokens_bytes)} as {caches.token_type}" if caches.has_tokens else ""
    yield f"mode: {_mode(caches, target.cfg.data)}"
    state = "built" if is_new else "stands already"
    yield f"{state}: lengths {format_bytes(caches.lengths_bytes)}{ids}{unpacked}, in {shown(caches.folder)}"


def _mode(caches: CacheSizes, data: DataConfig) -> str:
    if data.cache is not TokenCache.auto:
        return f"data.cache={data.cache.value}"
    budget = f"data.cache_budget_gib={data.cache_budget_gib:g}"
    if caches.has_tokens:
        return f"tokens, since their ids fit (data.cache=auto, {budget})"
    needed = format_bytes(caches.tokens_bytes)
    return f"lengths, since token ids would take {needed} (data.cache=auto: at most {budget} and half of the free disk)"


def _rate(built: Sequence[OpenSource], seconds: float) -> str:
    lines = sum(source.index.lines for source in built)
    tokens = sum(source.index.meta.tokens for source in built)
    return f"{seconds:,.1f} s: {format_count(lines / seconds)} lines/s, {format_count(tokens / seconds)} tokens/s"
