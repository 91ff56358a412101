"""How many embedding rows go with a tokenizer."""

from __future__ import annotations

import os

from molgen_pretrain.vocabulary.compaction import read_compaction
from molgen_pretrain.vocabulary.folder import read_tokenizer

# Rows in multiples of this suit matrix units and any tensor-parallel degree in use.
DEFAULT_MULTIPLE = 64

# Every published Qwen3 has the latter with the former; a tokenizer with tokens added to them still fits.
_QWEN3_LEARNED_TOKENS = 151_643
_QWEN3_ROWS = 151_936


def padded(size: int, multiple: int) -> int:
    """The least multiple that is no less than `size`."""
    return -(-size // multiple) * multiple


def embedding_rows(folder: str | os.PathLike[str], setting: str) -> int:
    """The `model.vocab_size` to use with a tokenizer: what a compact one was made for, 151,936 with Qwen3's, else its
    size padded to a multiple of 64. Raises UserError where there is no tokenizer."""
    compaction = read_compaction(folder)
    if compaction is not None:
        return compaction.padded_rows
    tokenizer = read_tokenizer(folder, setting)
    size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    is_qwen3 = tokenizer.get_vocab_size(with_added_tokens=False) == _QWEN3_LEARNED_TOKENS
    return _QWEN3_ROWS if is_qwen3 and size <= _QWEN3_ROWS else padded(size, DEFAULT_MULTIPLE)
