from __future__ import annotations

import os
from pathlib import Path

import pytest

from molgen_pretrain.data.files import resolve_files
from molgen_pretrain.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jsonl", "a.jsonl", "notes.txt"):
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_a_folder_a_glob_and_a_file_give_sorted_paths(folder: Path) -> None:
    both = [folder / "a.jsonl", folder / "b.jsonl"]
    assert resolve_files(folder) == both
    assert resolve_files(str(folder / "*.jsonl")) == both
    assert resolve_files(folder / "notes.txt") == [folder / "notes.txt"]


def test_compressed_files_are_listed_too(tmp_path: Path) -> None:
    for name in ("c.jsonl.gz", "a.jsonl.zst", "b.jsonl", "d.csv.gz", "e.jsonl.bz2"):
        (tmp_path / name).write_bytes(b"")
    listed = [tmp_path / name for name in ("a.jsonl.zst", "b.jsonl", "c.jsonl.gz")]
    assert resolve_files(tmp_path) == listed
    assert resolve_files(tmp_path / "[ab].jsonl*") == listed[:2]
    assert resolve_files(tmp_path / "c.jsonl.gz") == listed[2:]


@pytest.mark.parametrize(
    "names", [("a.jsonl", "a.jsonl.zst"), ("a.jsonl.gz", "a.jsonl"), ("a.jsonl.gz", "a.jsonl.zst")]
)
def test_plain_and_compressed_beside_each_other_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in (*names, "b.jsonl.gz"):
        (tmp_path / name).write_bytes(b"")
    for path in (tmp_path, tmp_path / "*", [tmp_path / name for name in names]):
        with pytest.raises(UserError, match="hold the same lines, which would train twice") as caught:
            resolve_files(path, setting="data.valid_path")
        assert all(str(tmp_path / name) in str(caught.value) for name in names)
    assert resolve_files(tmp_path / names[1]) == [tmp_path / names[1]]


def test_a_list_keeps_its_order(folder: Path) -> None:
    files = [folder / "b.jsonl", str(folder / "a.*")]
    assert resolve_files(files) == [folder / "b.jsonl", folder / "a.jsonl"]


def test_a_name_with_brackets_is_a_file_before_it_is_a_glob(folder: Path) -> None:
    (folder / "x[1].jsonl").write_text("{}\n")
    assert resolve_files(folder / "x[1].jsonl") == [folder / "x[1].jsonl"]


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("missing.jsonl", "no such file or folder"),
        ("empty", "no *.jsonl file in this folder"),
        ("*.parquet", "no file matches this glob"),
        (["a.jsonl", "*.jsonl"], "is named twice"),
        ([], "no data path"),
    ],
)
def test_mistakes_name_the_setting_and_the_fix(
    folder: Path, path: str | list[str], rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UserError) as caught:
        resolve_files(path, setting="data.valid_path")
    assert str(caught.value).startswith("data.valid_path")
    assert rule in str(caught.value)


def test_a_pipe_and_a_folder_named_like_a_file_are_refused(folder: Path) -> None:
    os.mkfifo(folder / "pipe.jsonl")
    with pytest.raises(UserError, match=r"pipe\.jsonl: not a regular file"):
        resolve_files(folder / "pipe.jsonl")
    (folder / "pipe.jsonl").unlink()
    (folder / "x.jsonl").mkdir()
    with pytest.raises(UserError, match=r"x\.jsonl: not a regular file"):
        resolve_files(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_refused(folder: Path) -> None:
    (folder / "a.jsonl").chmod(0)
    with pytest.raises(UserError, match="no permission"):
        resolve_files(folder)
