"""Token ids kept beside the line index: when, how much, and what happens where they do not fit."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from molgen_pretrain.data.files import resolve_files
from molgen_pretrain.data.lengths import open_line_index
from molgen_pretrain.data.line_index import LineIndex
from molgen_pretrain.data.reader import LineReader
from molgen_pretrain.data.token_cache import id_type, needed_bytes
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.data.units import parse_unit
from molgen_pretrain.errors import UserError

LINES = 300
Open = Callable[..., LineIndex]


@pytest.fixture
def folder(write_corpus: Callable[..., Path]) -> Path:
    return write_corpus(LINES, files=3, replaced={3: b"", 5: b"{", 298: b"[]"})


@pytest.fixture
def open_index(folder: Path, tokenizer: UnitTokenizer, tmp_path: Path) -> Open:
    def open_(token_cache: str, **options: int) -> LineIndex:
        return open_line_index(
            resolve_files(folder), tokenizer, tmp_path / "cache", min_emb_len=8, token_cache=token_cache, **options
        )

    return open_


def token_files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").rglob("tokens/*"))


def assert_ids_are_right(index: LineIndex, tokenizer: UnitTokenizer) -> None:
    reader = LineReader(index)
    lines = np.random.default_rng(0).permutation(LINES)
    starts, counts = index.token_starts(lines), index.token_counts(lines)
    for line, start, count in zip(lines.tolist(), starts.tolist(), counts.tolist(), strict=True):
        unit = parse_unit(reader.read(line), 8)
        expected = tokenizer.encode_batch([unit])[0] if isinstance(unit, str) else []
        assert index.tokens[start : start + count].tolist() == expected
    assert len(index.tokens) == index.meta.tokens == counts.sum()


def test_ids_are_those_of_the_tokenizer_and_counts_those_without(
    open_index: Open, tokenizer: UnitTokenizer, tmp_path: Path
) -> None:
    index = open_index("tokens")
    assert index.has_tokens
    assert index.tokens.dtype == np.dtype("<u2")  # 261 ids
    assert_ids_are_right(index, tokenizer)
    index.release_tokens()
    assert_ids_are_right(index, tokenizer)
    with_ids = (index.meta, index.token_counts(np.arange(LINES)).tolist())
    assert not open_index("lengths").has_tokens  # they stand, and are not used
    shutil.rmtree(tmp_path / "cache")
    alone = open_index("lengths")
    assert not alone.has_tokens
    assert with_ids == (alone.meta, alone.token_counts(np.arange(LINES)).tolist())


@pytest.mark.parametrize("mode", ["tokens", "auto"])
def test_ids_come_later_to_an_index_without(
    mode: str, open_index: Open, tokenizer: UnitTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    open_index("lengths")
    caplog.clear()
    caplog.set_level("INFO")
    assert_ids_are_right(open_index(mode, processes=2), tokenizer)
    assert caplog.records[0].message.startswith("pass for token ids over 3 data files")
    caplog.clear()
    assert open_index(mode).has_tokens
    assert not caplog.records, "a second time, nothing is to be done"


def test_auto_keeps_to_the_budget_at_first_and_later(
    open_index: Open, tokenizer: UnitTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    index = open_index("auto", budget_bytes=2000)
    assert not index.has_tokens
    assert "goes on without keeping token ids" in caplog.text
    assert "units are tokenized on the fly" in caplog.text
    assert token_files(tmp_path) == []
    needed = needed_bytes(LINES, index.meta.tokens, tokenizer.size)
    caplog.clear()
    assert not open_index("auto", budget_bytes=needed - 1).has_tokens
    assert "pass" not in caplog.text, "that it will not fit is known beforehand"
    assert open_index("auto", budget_bytes=needed).has_tokens
    size = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("tokens/*") if path.suffix != ".json")
    assert size == needed


def test_auto_takes_at_most_half_of_the_free_disk(open_index: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    open_index("lengths")
    needed = needed_bytes(LINES, open_index("lengths").meta.tokens, 300)
    for free, fits in ((2 * needed - 2, False), (2 * needed, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: shutil._ntuple_diskusage(0, 0, free))
        assert open_index("auto", budget_bytes=10**9).has_tokens is fits


@pytest.fixture
def disk_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`disk_of(bytes)`: the cache's disk holds so much from now on."""
    write = os.pwrite

    def limit(capacity: int) -> None:
        def pwrite(descriptor: int, content: bytes, offset: int) -> int:
            used = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())
            room = capacity - used
            if room <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(descriptor, content[:room], offset)  # as much as fits, like a real disk

        monkeypatch.setattr(os, "pwrite", pwrite)

    return limit


@pytest.mark.parametrize("upgrade", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_a_full_disk_leaves_lengths_or_an_error_that_says_so(
    upgrade: bool, share: float, open_index: Open, disk_of: Callable[[int], None], tmp_path: Path
) -> None:
    index = open_index("lengths")
    counts = index.token_counts(np.arange(LINES))
    arrays = 12 * LINES
    if not upgrade:
        shutil.rmtree(tmp_path / "cache")
    on_disk = sum(path.stat().st_size for path in index.folder.iterdir()) if upgrade else arrays
    disk_of(int(on_disk + share * 2 * index.meta.tokens))
    with pytest.raises(UserError, match=r"^paths\.cache=.*: no room for token ids: .*data\.cache=lengths") as caught:
        open_index("tokens")
    if Path("/proc/self/fd").is_dir():  # what is open takes its room, removed or not
        still_open = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
        assert not [name for name in still_open if "/cache/" in name and "building" in name], caught.value
    fallen_back = open_index("auto")
    assert not fallen_back.has_tokens
    assert np.array_equal(fallen_back.token_counts(np.arange(LINES)), counts)
    assert token_files(tmp_path) == []
    disk_of(0)
    shutil.rmtree(tmp_path / "cache")
    for mode in ("lengths", "auto"):
        with pytest.raises(UserError, match=r"^paths\.cache=.*: cannot write the cache .*No space left"):
            open_index(mode)


_DIE_IN_THE_SECOND_PASS = """
import os, signal, sys
from pathlib import Path
from molgen_pretrain.data import index_pass, lengths
from molgen_pretrain.data.tokenizer import UnitTokenizer
folder, tokenizer, cache = map(Path, sys.argv[1:])
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
lengths.TokenWriter.finish = die
rules = UnitTokenizer.load(tokenizer)
lengths.open_line_index(sorted(folder.iterdir()), rules, cache, min_emb_len=8, token_cache="auto")
"""


def test_a_kill_while_ids_are_added_leaves_the_index_usable(
    open_index: Open, folder: Path, tokenizer_folder: Path, tokenizer: UnitTokenizer, tmp_path: Path
) -> None:
    counts = open_index("lengths").token_counts(np.arange(LINES))
    command = [sys.executable, "-c", _DIE_IN_THE_SECOND_PASS, folder, tokenizer_folder, tmp_path / "cache"]
    assert subprocess.run(list(map(str, command)), check=False, timeout=60).returncode == -9
    assert np.array_equal(open_index("lengths").token_counts(np.arange(LINES)), counts)
    assert_ids_are_right(open_index("tokens"), tokenizer)


def test_damaged_ids_are_made_again_and_changed_lines_refused(
    open_index: Open, folder: Path, tokenizer: UnitTokenizer
) -> None:
    index = open_index("tokens")
    (index.folder / "tokens" / "ids.bin").write_bytes(b"short")
    assert_ids_are_right(open_index("tokens"), tokenizer)
    shutil.rmtree(index.folder / "tokens")
    file = folder / "part-1.jsonl"
    times = file.stat()
    file.write_bytes(file.read_bytes().replace(b"C", b"\xc3", 1))  # same size and time, other content
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(UserError, match=r"part-1\.jsonl:1: the file changed after it was indexed"):
        open_index("tokens")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everything")
def test_auto_uses_a_cache_that_it_may_not_write(open_index: Open) -> None:
    folder = open_index("lengths").folder
    folder.chmod(0o500)
    try:
        assert not open_index("auto").has_tokens
    finally:
        folder.chmod(0o700)


@pytest.mark.parametrize(
    ("size", "dtype"), [(2, "u1"), (256, "u1"), (257, "<u2"), (65536, "<u2"), (65537, "<u4"), (151673, "<u4")]
)
def test_the_smallest_type_that_holds_the_vocabulary(size: int, dtype: str) -> None:
    assert id_type(size) == np.dtype(dtype)


def test_an_unknown_mode_is_refused(open_index: Open) -> None:
    with pytest.raises(UserError, match=r"data\.cache=all: must be one of auto, lengths, tokens"):
        open_index("all")
    with pytest.raises(UserError, match=r"data\.index_processes=0"):
        open_index("lengths", processes=0)
