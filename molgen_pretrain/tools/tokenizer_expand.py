"""Writes a compact model back to the full vocabulary, for tools that insist on it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from transformers import GenerationConfig, Qwen3ForCausalLM

from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.errors import UserError
from molgen_pretrain.metrics.formats import format_bytes
from molgen_pretrain.model.hf_config import EMBEDDING, HEAD
from molgen_pretrain.model.hf_expand import Expansion, check_same_table, table_rows
from molgen_pretrain.model.hf_io import write_hf_folder
from molgen_pretrain.model.hf_snapshot import Snapshot, resolve
from molgen_pretrain.model.hf_weights import EXPORT_DTYPES, FilePlan, plan_files
from molgen_pretrain.model.qwen3 import Qwen3Arch
from molgen_pretrain.model.unused_rows import MARGIN, UnusedRow, unused_row
from molgen_pretrain.tools.tokenizer_report import Rows, section
from molgen_pretrain.vocabulary.compaction import read_compaction, token_text_map, vocabulary_digest
from molgen_pretrain.vocabulary.folder import new_folder, read_tokenizer
from molgen_pretrain.vocabulary.rows import embedding_rows

_BASE = "--base"
_SHOWN = 5
_CARD_FILE = "README.md"
_CARD_NOTE = """
## Full vocabulary

Trained with a compact tokenizer of {tokens:,} tokens and expanded to the {rows:,} rows of the full one afterwards. The
other rows were never trained with it; `generation_config.json` suppresses them.
"""


def run_expand(options: argparse.Namespace, console: Console) -> int:
    """Raises UserError, and writes nothing, where tokenizers or snapshot do not go with the compact model."""
    began = time.perf_counter()
    compact = Snapshot.open(options.compact, "compact")
    base = resolve(options.base, _BASE)
    places = _places(compact, base)
    snapshot = _snapshot(options, compact) if options.unused == "snapshot" else None
    rows = max(embedding_rows(base, _BASE), snapshot.rows if snapshot else 0)
    dtype = EXPORT_DTYPES[options.dtype]
    tables = [EMBEDDING] if compact.sizes["tie_word_embeddings"] else [EMBEDDING, HEAD]
    with new_folder(options.out) as folder:
        unused = {name: table_rows(compact, name, slice(0, len(places))).mean(dim=0) for name in tables}
        masked = None
        if snapshot is None:
            masked = _masked(compact, len(places), dtype)
            unused[tables[-1]] = masked.row  # the table that the head takes
        expansion = Expansion(compact, places, rows, unused, snapshot)
        plan = plan_files(expansion.shapes, dtype, options.max_shard_size)
        _write(folder, expansion, plan, base)
    console.print(section(f"written: {options.out}", _describe(expansion, masked, plan, base)), soft_wrap=True)
    console.print(f"  in {time.perf_counter() - began:.1f} s")
    return 0


def _places(compact: Snapshot, base: Path) -> list[int]:
    """The base's id of every token of the compact model, by the tokens' text."""
    ids = token_text_map(base, compact.folder, base_setting=_BASE)
    if len(ids) > compact.rows:
        raise UserError(
            f"compact={compact.folder}: {len(ids)} tokens, but {compact.rows} rows; they do not go together"
        )
    if missing := [new for new, old in enumerate(ids) if old is None]:
        tokenizer = read_tokenizer(compact.folder, "compact")
        shown = ", ".join(str(tokenizer.id_to_token(token)) for token in missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise UserError(
            f"{_BASE}={base}: has not the compact model's {shown}{more}; give the tokenizer that the compact one was"
            " made from"
        )
    return [old for old in ids if old is not None]


def _snapshot(options: argparse.Namespace, compact: Snapshot) -> Snapshot:
    setting, source = (_BASE, options.base) if options.snapshot is None else ("--snapshot", options.snapshot)
    snapshot = Snapshot.open(resolve(source, setting), setting)
    check_same_table(compact, snapshot, setting)
    return snapshot


def _masked(compact: Snapshot, tokens: int, dtype: torch.dtype) -> UnusedRow:
    """Runs the compact model, in the dtype of its files."""
    model = Qwen3ForCausalLM.from_pretrained(compact.folder, dtype="auto", use_safetensors=True)
    pad_id = UnitTokenizer.load(compact.folder, "compact").pad_id  # units follow it
    return unused_row(model, tokens, first=pad_id, dtype=dtype)


def _write(folder: Path, expansion: Expansion, plan: FilePlan, base: Path) -> None:
    pad_id = UnitTokenizer.load(base, _BASE).pad_id
    arch = Qwen3Arch(**{**expansion.compact.sizes, "vocab_size": expansion.rows})
    card_file = expansion.compact.folder / _CARD_FILE
    card = card_file.read_text(encoding="utf-8") if card_file.exists() else None
    write_hf_folder(
        folder,
        arch.hf_config(eos_token_id=pad_id, pad_token_id=pad_id),
        base,
        plan,
        (expansion.pieces(name) for name in plan.order),
        card=card and card + _CARD_NOTE.format(tokens=len(expansion.places), rows=expansion.rows),
    )
    suppressed = _unused_ids(expansion.places, expansion.rows)
    GenerationConfig(eos_token_id=pad_id, pad_token_id=pad_id, suppress_tokens=suppressed).save_pretrained(folder)


def _unused_ids(places: Sequence[int], rows: int) -> list[int]:
    return sorted(set(range(rows)) - set(places))


def _describe(expansion: Expansion, masked: UnusedRow | None, plan: FilePlan, base: Path) -> Rows:
    tokens, rows = len(expansion.places), expansion.rows
    yield "rows", f"{rows:,} (vocab_size): {tokens:,} of the compact model, {rows - tokens:,} unused"
    if masked is None:
        yield "unused rows", "the snapshot's"
    elif masked.is_masked:
        yield "unused rows", f"masked: their logits stay {masked.margin:.0f} below the largest"
    else:
        yield (
            "unused rows",
            f"the mean of the others: no row keeps its logit {MARGIN:.0f} below the largest, is the model trained?"
            " A sampler that ignores suppress_tokens may draw them",
        )
    yield "generation", f"generation_config.json: suppress_tokens, {rows - tokens:,} ids"
    record = read_compaction(expansion.compact.folder)
    if record is not None and record.base_digest != vocabulary_digest(read_tokenizer(base, _BASE)):
        yield "base", "another than the compact tokenizer was made from: every token was found, cuts may differ"
    yield "weights", f"{format_bytes(plan.total_bytes)} in {len(plan.files)} files"
