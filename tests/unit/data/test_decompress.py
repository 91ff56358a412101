"""Compressed shards: unpacked once, read as if they were plain."""

from __future__ import annotations

import gzip
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard

from molgen_pretrain.data.decompress import plain_files
from molgen_pretrain.data.files import resolve_files
from molgen_pretrain.data.lengths import open_line_index
from molgen_pretrain.data.reader import LineReader
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.errors import UserError

PACK: dict[str, Callable[[bytes], bytes]] = {
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,  # as the command line does
    ".gz": gzip.compress,
}
SUFFIXES = sorted(PACK)
# More than one block of input: numbers do not compress well.
TEXT = b"".join(b'{"number": %d}\n' % (number * 2654435761 % 2**32) for number in range(20_000))


def unpack(file: Path, cache: Path) -> bytes:
    [identity] = plain_files([file], cache, "paths.cache")
    assert identity.source == str(file)
    return Path(identity.path).read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_content_comes_back_whole(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.jsonl{suffix}"
    half = len(TEXT) // 2
    padding = b"\0" * 512 if suffix == ".gz" else b""
    for packed in (PACK[suffix](TEXT), PACK[suffix](TEXT[:half]) + padding + PACK[suffix](TEXT[half:])):
        file.write_bytes(packed)
        assert unpack(file, tmp_path / "cache") == TEXT
    file.write_bytes(PACK[suffix](b""))
    assert unpack(file, tmp_path / "cache") == b""


def test_frames_of_parallel_and_long_distance_zstd(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl.zst"
    skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"note"  # as pzstd writes them
    far = zstandard.ZstdCompressionParameters(window_log=28)
    file.write_bytes(skippable + zstandard.ZstdCompressor(compression_params=far).compressobj().compress(b""))
    compressor = zstandard.ZstdCompressor(compression_params=far).compressobj()
    file.write_bytes(skippable + compressor.compress(TEXT) + compressor.flush() + skippable)
    assert unpack(file, tmp_path / "cache") == TEXT


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("damage", ["truncated", "cut in a second part", "corrupt", "garbage behind", "empty", "plain"])
def test_a_damaged_archive_is_named_and_leaves_nothing(suffix: str, damage: str, tmp_path: Path) -> None:
    packed = PACK[suffix](TEXT)
    content = {
        "truncated": packed[:-9],
        "cut in a second part": packed + packed[: len(packed) // 2],
        "corrupt": packed[:5000] + bytes(byte ^ 0xFF for byte in packed[5000:5100]) + packed[5100:],
        "garbage behind": packed + b"garbage",
        "empty": b"",
        "plain": TEXT,
    }[damage]
    file = tmp_path / f"a.jsonl{suffix}"
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.jsonl\{suffix}: this archive (is damaged|ends too early)"):
        plain_files([file], tmp_path / "cache", "paths.cache")
    assert [path.name for path in (tmp_path / "cache" / "decompressed").iterdir() if path.is_dir()] == []


def test_a_mixed_folder_reads_like_a_plain_one(
    write_corpus: Callable[..., Path], tokenizer: UnitTokenizer, tmp_path: Path
) -> None:
    plain = write_corpus(600, files=3, replaced={450: b"[]"})
    packed = tmp_path / "packed"
    packed.mkdir()
    for number, suffix in enumerate(("", ".gz", ".zst")):
        content = (plain / f"part-{number}.jsonl").read_bytes()
        (packed / f"part-{number}.jsonl{suffix}").write_bytes(PACK[suffix](content) if suffix else content)
    packed.chmod(0o500)  # nothing is written beside the data
    indices = [
        open_line_index(resolve_files(folder), tokenizer, tmp_path / "cache", min_emb_len=8)
        for folder in (plain, packed)
    ]
    lines = np.arange(600)
    assert np.array_equal(*(index.token_counts(lines) for index in indices))
    readers = [LineReader(index) for index in indices]
    assert [readers[0].read(line) for line in range(600)] == [readers[1].read(line) for line in range(600)]
    assert indices[1].locate(450) == f"{packed / 'part-2.jsonl.zst'}:151"
    with pytest.raises(UserError, match=r"part-2\.jsonl\.zst:151: not_an_object"):
        open_line_index(resolve_files(packed), tokenizer, tmp_path / "cache", min_emb_len=8, stop_at_bad_line=True)


def test_it_is_done_once_until_the_archive_changes(
    tmp_path: Path, tokenizer: UnitTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(TEXT))

    def done() -> list[str]:
        caplog.clear()
        open_line_index([file], tokenizer, tmp_path / "cache", min_emb_len=8)
        return [word for word in ("decompressing", "one-time pass") if f"{word} " in caplog.text]

    assert done() == ["decompressing", "one-time pass"]
    assert done() == []
    [identity] = plain_files([file], tmp_path / "cache", "paths.cache")
    Path(identity.path).write_bytes(b"damaged")
    assert done() == ["decompressing"], "the copy made anew is the same file to the index"
    os.utime(file, (1, 1))
    assert done() == ["decompressing", "one-time pass"]


def test_two_at_once_unpack_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    files = [tmp_path / f"{number}.jsonl.gz" for number in range(4)]
    for file in files:
        file.write_bytes(gzip.compress(TEXT))
    found: list[list[str]] = []

    def open_them() -> None:
        found.append([identity.path for identity in plain_files(files, tmp_path / "cache", "paths.cache")])

    threads = [threading.Thread(target=open_them) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found[0] == found[1]
    assert {Path(path).read_bytes() for path in found[0]} == {TEXT}
    assert sum(record.message.startswith("decompressing 4 files") for record in caplog.records) == 1
    assert len(list((tmp_path / "cache" / "decompressed").glob("*/*.jsonl"))) == 4


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(TEXT))
    with pytest.raises(UserError, match=r"^paths\.cache=x: cannot write the cache"):
        plain_files([file], file, "paths.cache=x")
