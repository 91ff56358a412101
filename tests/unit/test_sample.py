"""The data and the tokenizer that ship with the package."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from tokenizers import Tokenizer

import molgen_pretrain

SAMPLE = Path(molgen_pretrain.__file__).parent / "sample"
TAGS = ("[SMILES]", "[/SMILES]", "[CONFORMER]", "[/CONFORMER]")


@cache
def records(split: str) -> list[dict[str, str]]:
    paths = sorted((SAMPLE / split).glob("*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def units() -> list[str]:
    return [
        f"[SMILES]{record['canonical_smiles']}[/SMILES][CONFORMER]{record['embedded_smiles']}[/CONFORMER]"
        for split in ("train", "valid")
        for record in records(split)
    ]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(SAMPLE / "tokenizer" / "tokenizer.json"))


def test_counts_keys_and_size() -> None:
    train, valid = records("train"), records("valid")
    assert len(train) + len(valid) >= 3000
    assert 0.05 <= len(valid) / (len(train) + len(valid)) <= 0.08
    assert all(set(record) == {"canonical_smiles", "embedded_smiles"} for record in train + valid)
    assert len({record["embedded_smiles"] for record in train + valid}) == len(train) + len(valid)
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file()) < 6_000_000


def test_split_is_by_molecule() -> None:
    pytest.importorskip("rdkit")
    from molgen_pretrain.chem.prepare import molecule_key

    train, valid = (
        {molecule_key(smiles) for smiles in {record["canonical_smiles"] for record in records(split)}}
        for split in ("train", "valid")
    )
    assert not train & valid
    assert len(train | valid) >= 1200


def test_every_line_round_trips() -> None:
    pytest.importorskip("rdkit")
    from molgen_pretrain.chem.enriched import decode, encode

    for record in records("train") + records("valid"):
        canonical, embedded = encode(decode(record["embedded_smiles"]))
        assert (canonical, embedded) == (record["canonical_smiles"], record["embedded_smiles"])


def test_tokenizer_loads_both_ways(tokenizer: Tokenizer) -> None:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(SAMPLE / "tokenizer")
    assert loaded.pad_token == loaded.eos_token == "<|endoftext|>"
    assert loaded.pad_token_id == loaded.eos_token_id == tokenizer.token_to_id("<|endoftext|>")
    assert len(loaded) == tokenizer.get_vocab_size()
    unit = units()[0]
    ids = loaded(unit, add_special_tokens=False)["input_ids"]
    assert ids == tokenizer.encode(unit, add_special_tokens=False).ids
    assert loaded.decode([*ids, loaded.pad_token_id], skip_special_tokens=True) == unit


def test_tags_separator_and_digits_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() <= 1024
    for tag in (*TAGS, "<|endoftext|>"):
        assert tokenizer.encode(tag, add_special_tokens=False).ids == [tokenizer.token_to_id(tag)]
    multi_digit = [token for token in tokenizer.get_vocab() if len(token) > 1 and any(c.isdigit() for c in token)]
    assert not multi_digit
    # A merge learned from the tags would be a token that no text between them can use.
    assert not [token for token in tokenizer.get_vocab() if "SMI" in token and token not in TAGS]


def test_every_unit_decodes_to_its_text(tokenizer: Tokenizer) -> None:
    texts = units()
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    assert tokenizer.decode_batch([encoding.ids for encoding in encodings], skip_special_tokens=False) == texts


@pytest.mark.parametrize("text", ["[Au+3]<1.0,2.0,3.0>%(123)$", "caf\u00e9 \u6f22\u5b57\n\t  x", "\U0001f9ea[", ""])
def test_any_text_is_representable(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text
