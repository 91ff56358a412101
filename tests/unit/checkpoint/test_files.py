from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import xxhash

from molgen_pretrain.checkpoint.files import CHUNK_BYTES, FileRecord, hash_file, write_bytes

CONTENT = bytes(range(256)) * (CHUNK_BYTES // 256) + b"and more than one chunk"
DIGESTS = {
    "xxh3_128": xxhash.xxh3_128_hexdigest(CONTENT),
    "blake2b": hashlib.blake2b(CONTENT, digest_size=16).hexdigest(),
}


def test_what_is_written_is_recorded_and_found_again(tmp_path: Path) -> None:
    record = write_bytes(tmp_path / "file", [CONTENT[:7], b"", memoryview(CONTENT)[7:]])
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert record == FileRecord(len(CONTENT), DIGESTS["xxh3_128"])
    assert record == hash_file(tmp_path / "file") == FileRecord.from_json(record.to_json())
    with pytest.raises(FileExistsError):
        write_bytes(tmp_path / "file", [b""])


@pytest.mark.parametrize("algorithm", DIGESTS)
def test_either_checksum_is_read(algorithm: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    record = FileRecord.from_json({"bytes": len(CONTENT), algorithm: DIGESTS[algorithm]})
    assert hash_file(tmp_path / "file", record.algorithm) == record


@pytest.mark.parametrize("content", [{}, {"bytes": 1}, {"bytes": "1", "blake2b": ""}, {"bytes": 1, "md5": ""}])
def test_records_of_another_kind_are_refused(content: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="checksum"):
        FileRecord.from_json(content)
