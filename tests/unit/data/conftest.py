from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from molgen_pretrain.data.tokenizer import UnitTokenizer

PAD = "<|endoftext|>"
TAGS = ["[SMILES]", "[/SMILES]", "[CONFORMER]", "[/CONFORMER]"]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte tokenizer with the four tags and the pad token: one token per ASCII character."""
    folder = tmp_path_factory.mktemp("tokenizer")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in (PAD, *TAGS)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": PAD}))
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> UnitTokenizer:
    return UnitTokenizer.load(tokenizer_folder)


def _line(number: int) -> bytes:
    # Deterministic, uneven lengths: units of 11 to 59 tokens in the byte tokenizer.
    carbons = 1 + number * 7 % 13
    return json.dumps(
        {"canonical_smiles": "C" * carbons, "embedded_smiles": f"[C]<{number:07d}>" + "C" * (number * 31 % 37)}
    ).encode()


@pytest.fixture
def write_corpus(tmp_path: Path) -> Callable[..., Path]:
    """`write_corpus(lines, files=2, replaced={3: b"..."})` -> a folder of JSONL shards, of uneven size."""

    def write(lines: int, files: int = 2, replaced: dict[int, bytes] | None = None) -> Path:
        folder = tmp_path / f"corpus-{lines}-{files}-{len(replaced or {})}"
        folder.mkdir()
        rows = [(replaced or {}).get(number, _line(number)) for number in range(lines)]
        cuts = [lines * part * (part + 1) // (files * (files + 1)) for part in range(files + 1)]
        for part in range(files):
            shard = rows[cuts[part] : cuts[part + 1]]
            (folder / f"part-{part}.jsonl").write_bytes(b"".join(row + b"\n" for row in shard))
        return folder

    return write
