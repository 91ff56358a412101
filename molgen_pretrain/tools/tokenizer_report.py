"""What the tokenizer tool prints: a tokenizer's sizes and names, what data make of it, what a compaction kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.data.units import format_unit
from molgen_pretrain.metrics.formats import format_count
from molgen_pretrain.tools.data_lengths import LengthStats
from molgen_pretrain.tools.tokenizer_pass import Usage
from molgen_pretrain.vocabulary.compaction import Compaction, read_compaction
from molgen_pretrain.vocabulary.folder import read_roles, read_tokenizer
from molgen_pretrain.vocabulary.rows import embedding_rows

_TAGS = re.findall(r"\[/?\w+\]", format_unit("", ""))

Rows = Iterator[tuple[str, str]]


def section(title: str, rows: Rows) -> str:
    """A line for each row, however long: for grep."""
    return "\n".join([title, *(f"  {name:<22}{value}" for name, value in rows)])


def describe(folder: Path, tokenizer: UnitTokenizer) -> Rows:
    """Sizes, and the tokens that have a part to play."""
    raw = read_tokenizer(folder, "tokenizer")
    learned, added = raw.get_vocab_size(with_added_tokens=False), raw.get_added_tokens_decoder()
    rows = embedding_rows(folder, "tokenizer")
    yield "tokens", f"{tokenizer.size:,}: {learned:,} learned, {tokenizer.size - learned:,} added"
    yield "embedding rows", f"{rows:,} (model.vocab_size), {rows - tokenizer.size:,} of them without a token"
    if compaction := read_compaction(folder):
        yield "compact", _origin(compaction)
    for role, text in read_roles(folder).items():
        token = raw.token_to_id(text)
        yield role.replace("_", " "), text + (" is no token" if token is None else f" {token}")
    specials = [f"{entry.content} {token}" for token, entry in added.items() if entry.special]
    yield "special tokens", f"{len(specials)}: {', '.join(specials)}"
    yield "tags", ", ".join(_tag(tag, tokenizer) for tag in _TAGS)


def describe_usage(usage: Usage, raw: Tokenizer) -> Rows:
    """What the data make of the tokenizer."""
    lengths = LengthStats.of(usage.units_of_length)
    size, in_use = len(usage.count_of_id), len(usage.ids)
    yield "files", f"{usage.files:,}"
    yield "units", f"{lengths.units:,}"
    if usage.bad_lines:
        yield "lines without one", ", ".join(f"{count:,} {reason}" for reason, count in usage.bad_lines.most_common())
    yield "tokens", f"{lengths.tokens:,} ({format_count(lengths.tokens)}), separators not counted"
    yield "characters per token", f"{_characters(usage, raw) / lengths.tokens:.3f}"
    yield "ids in use", f"{in_use:,} of {size:,} ({100 * in_use / size:.2f} %)"
    yield (
        "tokens per unit",
        f"{lengths.shortest:,} to {lengths.longest:,}: mean {lengths.mean:,.1f}, median {lengths.median:,}, p95"
        f" {lengths.p95:,}, p99 {lengths.p99:,}",
    )


def describe_compaction(record: Compaction, usage: Usage, tokenizer: Tokenizer) -> Rows:
    """What was kept and why, and the numbers of the proof."""
    added = set(tokenizer.get_added_tokens_decoder())
    in_use = set(usage.ids)
    others = sum(old not in in_use and new not in added for new, old in enumerate(record.kept_ids))
    unused_added = sum(record.kept_ids[new] not in in_use for new in added)
    yield (
        "tokens",
        f"{len(record.kept_ids):,} of {record.base_size:,}: {len(in_use):,} in use, {unused_added:,} added tokens"
        f" that are not, {others:,} single bytes, roles and steps of merges",
    )
    yield "embedding rows", f"{record.padded_rows:,} (model.vocab_size)"
    yield (
        "proof",
        f"all {record.proved_units:,} units encoded again with both: {record.proved_tokens:,} tokens,"
        " every one the same text at the same place",
    )


def _origin(record: Compaction) -> str:
    return (
        f"of a tokenizer with {record.base_size:,} tokens; the same segmentation on {record.proved_units:,} units"
        f" ({format_count(record.proved_tokens)} tokens)"
    )


def _tag(tag: str, tokenizer: UnitTokenizer) -> str:
    ids = tokenizer.encode_batch([tag])[0]
    return f"{tag} {ids[0]}" if len(ids) == 1 else f"{tag} in {len(ids)} pieces"


def _characters(usage: Usage, raw: Tokenizer) -> int:
    """Of all units; a character that tokens share counts with each of them."""
    lengths = {token: len(raw.decode([token], skip_special_tokens=False)) for token in usage.ids}
    return sum(int(usage.count_of_id[token]) * length for token, length in lengths.items())
