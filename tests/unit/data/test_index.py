"""The one-time pass and its cache."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from molgen_pretrain.data.cache import build_once
from molgen_pretrain.data.files import resolve_files
from molgen_pretrain.data.lengths import open_line_index
from molgen_pretrain.data.line_index import LENGTHS_FILE, LineIndex
from molgen_pretrain.data.reader import LineReader
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.data.units import MAX_LINE_BYTES, parse_unit
from molgen_pretrain.errors import UserError

Corpus = Callable[..., Path]
BAD = {3: b"", 5: b"{", 40: b'{"canonical_smiles": 1, "embedded_smiles": 2}', 41: b"[]", 99: b"\xff"}


@pytest.fixture
def open_index(tokenizer: UnitTokenizer, tmp_path: Path) -> Callable[..., LineIndex]:
    def open_(path: Path, min_emb_len: int = 8, stop_at_bad_line: bool = False) -> LineIndex:
        return open_line_index(
            resolve_files(path),
            tokenizer,
            tmp_path / "cache",
            min_emb_len=min_emb_len,
            stop_at_bad_line=stop_at_bad_line,
        )

    return open_


def raw_lines(folder: Path) -> list[bytes]:
    return [line for file in sorted(folder.iterdir()) for line in file.read_bytes().splitlines(keepends=True)]


def test_lines_counts_and_bad_lines(
    write_corpus: Corpus, open_index: Callable[..., LineIndex], tokenizer: UnitTokenizer
) -> None:
    folder = write_corpus(100, files=3, replaced=BAD)
    index = open_index(folder)
    lines = raw_lines(folder)
    units = [parse_unit(line, 8) for line in lines]
    expected = [tokenizer.count_tokens([unit])[0] if isinstance(unit, str) else 0 for unit in units]
    assert index.token_counts(np.arange(100)).tolist() == expected
    assert index.meta.bad_lines == {
        "blank": 1, "invalid_json": 1, "wrong_type": 1, "not_an_object": 1, "invalid_utf8": 1
    }  # fmt: skip
    assert sum(index.meta.units_of_length.values()) + sum(index.meta.bad_lines.values()) == index.lines
    reader = LineReader(index)
    assert [reader.read(number) for number in range(100)] == lines
    assert index.locate(0) == f"{folder / 'part-0.jsonl'}:1"
    assert index.locate(99) == f"{folder / 'part-2.jsonl'}:50"


def test_only_the_first_bad_lines_are_kept(write_corpus: Corpus, open_index: Callable[..., LineIndex]) -> None:
    bad = dict.fromkeys(range(10, 200, 7), b"[]")
    meta = open_index(write_corpus(200, files=2, replaced=bad)).meta
    assert meta.bad_lines == {"not_an_object": len(bad)}
    # The first file has 66 lines: its last bad one is line 60 (1-based), the next one is the second's second.
    assert [(example.file, example.line) for example in meta.first_bad_lines] == [
        *((0, number + 1) for number in range(10, 66, 7)), (1, 1), (1, 8)
    ]  # fmt: skip


def test_lines_end_at_newlines_only(tmp_path: Path, open_index: Callable[..., LineIndex], write_corpus: Corpus) -> None:
    good = raw_lines(write_corpus(3, files=1))
    # An empty file among full ones, CR LF, a separator that str.splitlines would cut at, no last newline.
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(b"")
    (folder / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + good[0].replace(b"\n", b"\r\n") + good[1].rstrip())
    separator = good[2].replace(b"[C]", "\u2028".encode())
    (folder / "c.jsonl").write_bytes(separator + b" " * (2 * MAX_LINE_BYTES + 5) + b"\n" + good[2])
    index = open_index(folder)
    assert index.lines == 5
    assert (index.token_counts(np.arange(5)) > 0).tolist() == [True, True, True, False, True]
    assert index.meta.bad_lines == {"too_long": 1}
    assert LineReader(index).read(4) == good[2]
    assert index.locate(3) == f"{folder / 'c.jsonl'}:2"


def test_error_mode_names_the_first_bad_line(write_corpus: Corpus, open_index: Callable[..., LineIndex]) -> None:
    folder = write_corpus(100, files=1, replaced=BAD)
    rule = rf"data\.on_bad_line=error: {folder}/part-0\.jsonl:4: blank"
    with pytest.raises(UserError, match=rule):
        open_index(folder, stop_at_bad_line=True)
    open_index(folder)
    with pytest.raises(UserError, match=rule):  # and from the cache
        open_index(folder, stop_at_bad_line=True)


def test_the_cache_is_used_until_something_changes(
    write_corpus: Corpus, open_index: Callable[..., LineIndex], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    def passes(**options: object) -> int:
        caplog.clear()
        open_index(folder, **options)
        return sum("one-time pass over" in record.message for record in caplog.records)

    folder = write_corpus(50)
    assert passes() == 1
    assert passes() == 0
    assert passes(min_emb_len=9) == 1
    with (folder / "part-1.jsonl").open("ab") as file:
        file.write(b"{}\n")
    assert passes() == 1
    os.utime(folder / "part-0.jsonl", (1, 1))
    assert passes() == 1


def test_a_damaged_cache_is_built_again(
    write_corpus: Corpus, open_index: Callable[..., LineIndex], tmp_path: Path
) -> None:
    folder = write_corpus(50)
    counts = open_index(folder).token_counts(np.arange(50))
    [lengths] = (tmp_path / "cache").rglob(LENGTHS_FILE)
    lengths.write_bytes(b"\0" * 8)
    assert np.array_equal(open_index(folder).token_counts(np.arange(50)), counts)


def test_an_unusable_cache_folder_is_named(write_corpus: Corpus, tokenizer: UnitTokenizer) -> None:
    folder = write_corpus(5)
    in_the_way = folder / "part-0.jsonl"
    with pytest.raises(UserError, match=rf"paths\.cache={in_the_way}: cannot write"):
        open_line_index(resolve_files(folder), tokenizer, in_the_way, min_emb_len=8)


def test_an_index_travels_as_its_folder(write_corpus: Corpus, open_index: Callable[..., LineIndex]) -> None:
    index = open_index(write_corpus(2000))
    pickled = pickle.dumps(LineReader(index))
    assert len(pickled) < 1000
    assert pickle.loads(pickled).read(1999) == LineReader(index).read(1999)  # noqa: S301


@pytest.mark.parametrize("change", ["grow", "shrink", "remove"])
def test_a_file_that_changes_while_open_is_named(
    change: str, write_corpus: Corpus, open_index: Callable[..., LineIndex]
) -> None:
    folder = write_corpus(20, files=1)
    reader = LineReader(open_index(folder))
    file = folder / "part-0.jsonl"
    if change == "remove":
        file.unlink()
    else:
        content = file.read_bytes()
        file.write_bytes(content + b"{}\n" if change == "grow" else content[:-5])
    with pytest.raises(UserError, match=r"part-0\.jsonl:8"):
        reader.read(7)


_OPEN = """
import logging, sys
from pathlib import Path
logging.basicConfig(level=logging.INFO, format="%(message)s")
from molgen_pretrain.data.lengths import open_line_index
from molgen_pretrain.data.tokenizer import UnitTokenizer
corpus, tokenizer, cache = map(Path, sys.argv[1:])
loaded = UnitTokenizer.load(tokenizer)
print("ready", flush=True)
sys.stdin.readline()
print(open_line_index(sorted(corpus.iterdir()), loaded, cache, min_emb_len=8).lines)
assert "torch" not in sys.modules, "the pass must stay quick to import"
"""


def test_two_processes_at_once_build_once(write_corpus: Corpus, tokenizer_folder: Path, tmp_path: Path) -> None:
    arguments = [str(write_corpus(20_000)), str(tokenizer_folder), str(tmp_path / "cache")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _OPEN, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    results = [process.communicate("\n", timeout=60) for process in processes]
    assert [out for out, _ in results] == ["20000\n", "20000\n"], results
    assert sum(log.count("one-time pass over") for _, log in results) == 1


_DIE_WHILE_BUILDING = """
import os, signal, sys
from pathlib import Path
from molgen_pretrain.data.cache import build_once
def build(folder):
    (folder / "part").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
build_once(Path(sys.argv[1]), build, lambda folder: (folder / "done").exists())
"""


def test_a_killed_builder_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    folder = tmp_path / "result"
    died = subprocess.run([sys.executable, "-c", _DIE_WHILE_BUILDING, str(folder)], check=False)
    assert died.returncode == -9
    assert not folder.exists()
    [leftover] = tmp_path.glob("result.building-*")
    an_hour_ago = time.time() - 4000
    for path in (leftover, *leftover.iterdir()):
        os.utime(path, (an_hour_ago, an_hour_ago))

    def build(aside: Path) -> None:
        (aside / "done").write_text(json.dumps("whole"))

    build_once(folder, build, lambda path: (path / "done").exists())
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["result"]


def test_without_locks_the_first_result_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("molgen_pretrain.data.cache.fcntl", None)
    folder = tmp_path / "result"

    def is_complete(path: Path) -> bool:
        return (path / "done").exists()

    def write(aside: Path, text: str) -> None:
        (aside / "done").write_text(text)

    def build_while_another_is_faster(aside: Path) -> None:
        write(aside, "second")
        build_once(folder, lambda other: write(other, "first"), is_complete)

    build_once(folder, build_while_another_is_faster, is_complete)
    assert (folder / "done").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["result"]
