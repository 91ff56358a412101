"""The record beside a compact tokenizer, and the rows that it tells."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from molgen_pretrain.errors import UserError
from molgen_pretrain.vocabulary.compact import compact
from molgen_pretrain.vocabulary.compaction import (
    COMPACTION_FILE,
    Compaction,
    read_compaction,
    token_text_map,
    vocabulary_digest,
)
from molgen_pretrain.vocabulary.extend import extend
from molgen_pretrain.vocabulary.folder import new_folder, read_tokenizer, write_tokenizer
from molgen_pretrain.vocabulary.rows import embedding_rows, padded

RECORD = Compaction((0, 3, 7), base_size=9, base_digest="d", padded_rows=64, proved_units=5, proved_tokens=50)


def test_the_record_is_read_as_it_was_written(tmp_path: Path, sample_folder: Path) -> None:
    RECORD.write(tmp_path)
    assert read_compaction(tmp_path) == RECORD
    assert read_compaction(sample_folder) is None


@pytest.mark.parametrize(
    "change", [{"kept_ids": (0, 3, 3)}, {"kept_ids": (0, 9)}, {"kept_ids": ("0",)}, {"padded_rows": 2}]
)
def test_a_record_that_cannot_be_is_refused(tmp_path: Path, change: dict) -> None:
    dataclasses.replace(RECORD, **change).write(tmp_path)
    with pytest.raises(UserError, match=f"{COMPACTION_FILE}: is damaged"):
        read_compaction(tmp_path)


def test_a_cut_record_is_refused(tmp_path: Path) -> None:
    RECORD.write(tmp_path)
    file = tmp_path / COMPACTION_FILE
    file.write_text(file.read_text()[:20])
    with pytest.raises(UserError, match="is damaged"):
        read_compaction(tmp_path)


def test_rows_are_found_by_text(tmp_path: Path, sample: Tokenizer, sample_folder: Path) -> None:
    small, kept = compact(sample, [sample.token_to_id("]<-")])
    write_tokenizer(small, sample_folder, tmp_path)
    assert token_text_map(sample_folder, tmp_path) == kept
    # A base that has one token less, and its ids elsewhere.
    other = read_tokenizer(sample_folder, "base")
    extend(other, ["[NEW]"])
    more = tmp_path / "more"
    more.mkdir()
    write_tokenizer(compact(other, [])[0], sample_folder, more)
    own = read_tokenizer(more, "tokenizer")
    rows = token_text_map(sample_folder, more)
    assert [own.id_to_token(new) for new, old in enumerate(rows) if old is None] == ["[NEW]"]
    assert all(sample.id_to_token(old) == own.id_to_token(new) for new, old in enumerate(rows) if old is not None)


def test_the_digest_is_of_texts_and_ids(tmp_path: Path, sample: Tokenizer) -> None:
    (tmp_path / "tokenizer.json").write_text(sample.to_str(pretty=False))  # the same in another spelling
    again = read_tokenizer(tmp_path, "tokenizer")
    assert vocabulary_digest(again) == vocabulary_digest(sample)
    extend(again, ["[NEW]"])
    assert vocabulary_digest(again) != vocabulary_digest(sample)


def test_rows_that_go_with_a_tokenizer(tmp_path: Path, sample_folder: Path) -> None:
    assert [padded(size, 64) for size in (1, 64, 65)] == [64, 64, 128]
    assert embedding_rows(sample_folder, "tokenizer") == 384  # 354 tokens
    folder = shutil.copytree(sample_folder, tmp_path / "compact")
    dataclasses.replace(RECORD, padded_rows=1000).write(folder)
    assert embedding_rows(folder, "tokenizer") == 1000


@pytest.mark.parametrize("name", ["origin", "custom"])
def test_qwen3_has_its_published_rows(qwen3: Callable[[str], Path], name: str) -> None:
    assert embedding_rows(qwen3(name), "tokenizer") == 151_936


def test_a_new_folder_stands_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "new"

    def fail() -> None:
        with new_folder(target) as folder:
            (folder / "file").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not list(target.parent.iterdir())
    with new_folder(target) as folder:
        (folder / "file").touch()
        assert not target.exists()
    assert [path.name for path in target.parent.rglob("*")] == ["new", "file"]
    with pytest.raises(UserError, match="exists already"), new_folder(target):
        pass
    with pytest.raises(UserError, match="cannot be written"), new_folder(target / "file" / "below"):
        pass


@pytest.mark.parametrize(("content", "rule"), [("{", "cannot be read"), (None, "no tokenizer.json there")])
def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, content: str | None, rule: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=f"init.from={tmp_path}: .*{rule}"):
        token_text_map(tmp_path, tmp_path, base_setting="init.from")
