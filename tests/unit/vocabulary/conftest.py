from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from molgen_pretrain.data.units import format_unit
from molgen_pretrain.vocabulary.folder import read_tokenizer

ROOT = Path(__file__).resolve().parents[3]
SHARED = ROOT / ".." / "shared"


@pytest.fixture(scope="session")
def sample_folder() -> Path:
    return ROOT / "molgen_pretrain" / "sample" / "tokenizer"


@pytest.fixture(scope="session")
def sample(sample_folder: Path) -> Tokenizer:
    return read_tokenizer(sample_folder, "tokenizer")


@pytest.fixture(scope="session")
def qwen3() -> Callable[[str], Path]:
    """The folder of the Qwen3 tokenizer "origin" or "custom"."""

    def folder(name: str) -> Path:
        if not SHARED.is_dir():
            pytest.skip("the shared folder with Qwen3's tokenizer is not here")
        return SHARED / "tokenizers" / f"qwen3_{name}"

    return folder


@pytest.fixture(scope="session")
def units() -> Callable[[Path], list[str]]:
    """The unit texts of a folder of lines, or of the bundled sample's validation lines."""

    def read(folder: Path = ROOT / "molgen_pretrain" / "sample" / "valid") -> list[str]:
        records = [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.open()]
        return [format_unit(record["canonical_smiles"], record["embedded_smiles"]) for record in records]

    return read


@pytest.fixture(scope="session")
def encode() -> Callable[[Tokenizer, list[str]], list[list[int]]]:
    def ids(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    return ids
