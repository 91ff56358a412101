"""The record of what a compact tokenizer keeps, and the way of weights between two vocabularies."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from tokenizers import Tokenizer

from molgen_pretrain.errors import UserError
from molgen_pretrain.vocabulary.folder import read_tokenizer

COMPACTION_FILE = "compaction.json"


@dataclass(frozen=True, slots=True)
class Compaction:
    """Beside a compact tokenizer.

    `kept_ids` [tokens] is the base's id of every id, ascending; `base_size` the base's tokens, `base_digest` their
    `vocabulary_digest`. `padded_rows` are the embedding rows to use. On `proved_units` units of `proved_tokens`
    tokens the segmentation was found to be the base's.
    """

    kept_ids: tuple[int, ...]
    base_size: int
    base_digest: str
    padded_rows: int
    proved_units: int
    proved_tokens: int

    def write(self, folder: Path) -> None:
        (folder / COMPACTION_FILE).write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")


def read_compaction(folder: str | os.PathLike[str]) -> Compaction | None:
    """The record in a tokenizer's folder; None where the tokenizer is no compact one. UserError if it is damaged."""
    file = Path(folder) / COMPACTION_FILE
    if not file.exists():
        return None
    try:
        fields = json.loads(file.read_bytes())
        record = Compaction(**{**fields, "kept_ids": tuple(fields["kept_ids"])})
        is_whole = all(low < high for low, high in pairwise((-1, *record.kept_ids, record.base_size)))
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file}: is damaged ({error}); make the compact tokenizer again") from error
    if not is_whole or record.padded_rows < len(record.kept_ids):
        raise UserError(f"{file}: is damaged (numbers out of range); make the compact tokenizer again")
    return record


def token_text_map(
    base: str | os.PathLike[str], compact: str | os.PathLike[str], *, base_setting: str = "base"
) -> list[int | None]:
    """The base's id of the token with the same text, for every id of the compact tokenizer; both are folders.

    None for a token that this base lacks: its row has to be made anew. The base need not be the one that the
    compact tokenizer was made from (for that one it is `Compaction.kept_ids`). Raises UserError where a folder has
    no tokenizer.
    """
    ids = read_tokenizer(base, base_setting).get_vocab(with_added_tokens=True)
    own = read_tokenizer(compact, "data.tokenizer").get_vocab(with_added_tokens=True)
    return [ids.get(text) for text in sorted(own, key=own.__getitem__)]


def vocabulary_digest(tokenizer: Tokenizer) -> str:
    """SHA-256 of which text has which id: what rows of an embedding mean, however the files are spelled."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    return hashlib.sha256(json.dumps(vocabulary, sort_keys=True).encode()).hexdigest()
