"""The line index of some files where it stands already: for whoever only wants to know, and makes no pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from molgen_pretrain.data.files import ARCHIVE_SUFFIXES, FileIdentity
from molgen_pretrain.data.lengths import cache_key
from molgen_pretrain.data.line_index import IndexMeta, is_complete
from molgen_pretrain.data.tokenizer import UnitTokenizer


def known_totals(
    files: Sequence[Path], tokenizer: UnitTokenizer, cache_dir: Path, *, min_emb_len: int
) -> IndexMeta | None:
    """The totals of the one-time pass over `files`, None where it has not been made.

    Also None for compressed files, whose unpacked copies decide where the index lies.
    """
    if any(file.suffix in ARCHIVE_SUFFIXES for file in files):
        return None
    folder = cache_dir / "data" / cache_key([FileIdentity.of(file) for file in files], tokenizer, min_emb_len)
    return IndexMeta.load(folder) if is_complete(folder) else None
