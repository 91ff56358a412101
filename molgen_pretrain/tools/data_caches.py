"""What the one-time pass keeps on disk, and what it would keep in the other mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from molgen_pretrain.data.line_index import LineIndex
from molgen_pretrain.data.token_cache import id_type, needed_bytes


@dataclass(frozen=True, slots=True)
class CacheSizes:
    """Bytes on disk; `tokens_bytes` is what token ids take, or would take where `has_tokens` is false.

    `unpacked_bytes` are those of compressed files once they are unpacked.
    """

    folder: str
    lengths_bytes: int
    tokens_bytes: int
    token_type: str
    has_tokens: bool
    unpacked_bytes: int

    @classmethod
    def of(cls, index: LineIndex, tokenizer_size: int) -> CacheSizes:
        return cls(
            folder=str(index.folder),
            lengths_bytes=sum(file.stat().st_size for file in index.folder.iterdir() if file.is_file()),
            tokens_bytes=needed_bytes(index.lines, index.meta.tokens, tokenizer_size),
            token_type=id_type(tokenizer_size).name,
            has_tokens=index.has_tokens,
            unpacked_bytes=sum(file.size for file in index.meta.files if file.path != file.source),
        )

    @classmethod
    def total(cls, parts: Sequence[CacheSizes]) -> CacheSizes:
        return cls(
            folder=str(Path(parts[0].folder).parent),
            lengths_bytes=sum(part.lengths_bytes for part in parts),
            tokens_bytes=sum(part.tokens_bytes for part in parts),
            token_type=parts[0].token_type,
            has_tokens=all(part.has_tokens for part in parts),
            unpacked_bytes=sum(part.unpacked_bytes for part in parts),
        )
