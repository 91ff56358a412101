"""The tokenizer as the data needs it: text to ids without special tokens, and which id separates units.

Read with the `tokenizers` library directly, which is quick to import and what transformers' fast tokenizers
rest on: ids are the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from molgen_pretrain.errors import UserError

_TOKENIZER_FILE = "tokenizer.json"
# In the order in which they are asked for the pad token.
_CONFIG_FILES = ("tokenizer_config.json", "special_tokens_map.json")


class UnitTokenizer:
    """A Hugging Face tokenizer folder, reduced to encoding units.

    `pad_id` is the pad token's id: it stands after every unit and fills the rest of a sequence. `size` is the
    highest id plus one, added tokens included: the fewest embedding rows that fit. `fingerprint` is a hash of
    what decides the ids; caches are keyed by it.
    """

    def __init__(self, tokenizer: Tokenizer, pad_token: str, fingerprint: str) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self._tokenizer = tokenizer
        self.pad_token = pad_token
        self.pad_id = vocabulary[pad_token]
        self.size = max(vocabulary.values()) + 1
        self.fingerprint = fingerprint

    @classmethod
    def load(cls, folder: str | os.PathLike[str], setting: str = "data.tokenizer") -> UnitTokenizer:
        """Reads `tokenizer.json` and the pad token's name beside it.

        Raises UserError where the folder or a file is missing or damaged, or no pad token is named.
        """
        root = Path(folder)
        if not root.is_dir():
            raise UserError(f"{setting}={folder}: no such folder; give a folder with {_TOKENIZER_FILE}")
        content = _read(root / _TOKENIZER_FILE, setting)
        try:
            tokenizer = Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises a bare Exception for whatever it cannot read
            raise UserError(f"{setting}={folder}: {_TOKENIZER_FILE} is damaged ({error})") from error
        pad_token = _find_pad_token(root, setting)
        if pad_token is None:
            raise UserError(
                f"{setting}={folder}: the tokenizer has no pad token; it separates units and fills sequences:"
                f' name one as "pad_token" in {_CONFIG_FILES[0]}'
            )
        if tokenizer.token_to_id(pad_token) is None:
            raise UserError(f"{setting}={folder}: the pad token {pad_token!r} is not in {_TOKENIZER_FILE}'s vocabulary")
        return cls(tokenizer, pad_token, _fingerprint(content, pad_token))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens added."""
        return [encoding.ids for encoding in self._encode(texts)]

    def encode_flat(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """(ids of all texts one after another, number of ids per text [n]): `encode_batch` for many texts."""
        encodings = self._encode(texts)
        counts = np.array([len(encoding) for encoding in encodings], dtype=np.int64)
        # array.array takes a list of ints four times as fast as numpy does; its "I" is numpy's uintc.
        ids = b"".join([array("I", encoding.ids).tobytes() for encoding in encodings])
        return np.frombuffer(ids, dtype=np.uintc), counts

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many ids `encode_batch` gives for each text, without making Python lists of them."""
        return [len(encoding) for encoding in self._encode(texts)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens kept: for people to read."""
        return self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=False)

    def _encode(self, texts: Sequence[str]) -> list[Encoding]:
        # The fast variant leaves out character offsets, a fifth of the time.
        return self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)


def _read(file: Path, setting: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{setting}={file.parent}: cannot read {file.name}: {error.strerror}") from None


def _find_pad_token(folder: Path, setting: str) -> str | None:
    for name in _CONFIG_FILES:
        if not (folder / name).exists():
            continue
        try:
            config = json.loads(_read(folder / name, setting))
        except ValueError as error:
            raise UserError(f"{setting}={folder}: {name} is not valid JSON: {error}") from None
        token = _token_text(config.get("pad_token") if isinstance(config, dict) else None)
        if token is not None:
            return token
    return None


def _token_text(entry: Any) -> str | None:
    """Both spellings in use: a string, or an object that holds it as `content`."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None


def _fingerprint(content: bytes, pad_token: str) -> str:
    return hashlib.sha256(content + b"\0" + pad_token.encode()).hexdigest()
