from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest

from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.errors import UserError


@pytest.fixture
def folder(tokenizer_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tokenizer_folder, tmp_path / "tokenizer"))


def test_encodes_without_special_tokens_and_decodes_with_them(tokenizer: UnitTokenizer) -> None:
    text = "[SMILES]CC[/SMILES][CONFORMER][C]<1.0>[/CONFORMER]"
    [ids] = tokenizer.encode_batch([text])
    assert len(ids) == 4 + len("CC[C]<1.0>")
    assert tokenizer.count_tokens([text]) == [len(ids)]
    assert tokenizer.decode([*ids, tokenizer.pad_id]) == text + "<|endoftext|>"
    assert tokenizer.pad_id == 256
    assert tokenizer.size == 261


def test_survives_the_way_to_a_worker(tokenizer: UnitTokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301
    assert copy.encode_batch(["[SMILES]C"]) == tokenizer.encode_batch(["[SMILES]C"])
    assert (copy.pad_id, copy.size, copy.fingerprint) == (256, 261, tokenizer.fingerprint)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("entry", ["[SMILES]", {"content": "[SMILES]", "lstrip": False}])
def test_the_pad_token_is_found_in_both_files_and_spellings(folder: Path, file: str, entry: object) -> None:
    (folder / "tokenizer_config.json").unlink()
    (folder / file).write_text(json.dumps({"pad_token": entry}))
    assert UnitTokenizer.load(folder).pad_id == 257


def test_truncation_and_padding_of_the_file_do_not_apply(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert UnitTokenizer.load(folder).count_tokens(["CCCCCC"]) == [6]


def test_the_fingerprint_covers_the_content_and_the_pad_token(folder: Path, tokenizer: UnitTokenizer) -> None:
    assert UnitTokenizer.load(folder).fingerprint == tokenizer.fingerprint
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[SMILES]"}))
    assert UnitTokenizer.load(folder).fingerprint != tokenizer.fingerprint


@pytest.mark.parametrize(
    ("file", "content", "rule"),
    [
        ("tokenizer_config.json", "{}", "has no pad token"),
        ("tokenizer_config.json", '{"pad_token": null}', "has no pad token"),
        ("tokenizer_config.json", '{"pad_token": "<absent>"}', "is not in"),
        ("tokenizer_config.json", "{", "not valid JSON"),
        ("tokenizer.json", "{}", "is damaged"),
    ],
)
def test_mistakes_name_the_setting(folder: Path, file: str, content: str, rule: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(UserError) as caught:
        UnitTokenizer.load(folder)
    assert str(caught.value).startswith("data.tokenizer=")
    assert rule in str(caught.value)


def test_a_missing_folder_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        UnitTokenizer.load(tmp_path / "absent")
    with pytest.raises(UserError, match=r"cannot read tokenizer\.json"):
        UnitTokenizer.load(tmp_path)
