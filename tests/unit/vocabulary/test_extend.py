from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from molgen_pretrain.errors import UserError
from molgen_pretrain.vocabulary.extend import extend
from molgen_pretrain.vocabulary.folder import read_tokenizer, write_tokenizer

TAGS = ["[SMILES]", "[CONFORMER]", "[/SMILES]", "[/CONFORMER]"]  # in the order of qwen3_custom's ids


def test_qwen3_with_the_tags_is_the_custom_tokenizer(
    qwen3: Callable[[str], Path], units: Callable[[Path], list[str]], encode: Callable, tmp_path: Path
) -> None:
    origin, custom = qwen3("origin"), qwen3("custom")
    tokenizer = read_tokenizer(origin, "base")
    assert list(extend(tokenizer, TAGS).items()) == list(zip(TAGS, range(151669, 151673), strict=True))
    write_tokenizer(tokenizer, origin, tmp_path)
    texts = units(origin.parents[1] / "data" / "conformers" / "valid")
    assert encode(read_tokenizer(tmp_path, "x"), texts) == encode(read_tokenizer(custom, "x"), texts)
    # The files beside it say the same ids.
    read = {name: json.loads((tmp_path / name).read_text()) for name in ("added_tokens.json", "tokenizer_config.json")}
    assert read["added_tokens.json"] == json.loads((custom / "added_tokens.json").read_text())
    reference = json.loads((custom / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    added = read["tokenizer_config.json"]["added_tokens_decoder"]
    assert {token: entry["content"] for token, entry in added.items()} == {
        token: entry["content"] for token, entry in reference.items()
    }


@pytest.mark.parametrize(
    ("tokens", "rule"),
    [
        (["[NEW]", ""], "empty text"),
        (["[NEW]", "[NEW]"], "named twice"),
        (["[NEW]", "[SMILES]"], "already, with id 350"),
        (["[NEW]", "C"], "already, with id"),
        (["[NEW]", " "], "already, with id"),  # the vocabulary calls it "Ġ"
        (["[NEW]", "Ġ"], "already, with id"),
    ],
)
def test_refuses_without_a_change(sample: Tokenizer, tokens: list[str], rule: str) -> None:
    before = sample.to_str()
    with pytest.raises(UserError, match=rule):
        extend(sample, tokens)
    assert sample.to_str() == before
