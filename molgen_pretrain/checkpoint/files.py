"""Files on disk: written through with a checksum, and checked against it. Knows nothing of tensors or torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

# Large enough that a system call costs nothing beside it, small enough that what checks the bytes before they
# are written finds them in the processor's cache.
CHUNK_BYTES = 4 * 2**20

CHECKSUM = "xxh3_128"
# Checksums find damage, not forgery: whoever can write a file can write its manifest. BLAKE2b-128 is read only.
_HASHES: dict[str, Callable[[], Any]] = {
    CHECKSUM: xxhash.xxh3_128,
    "blake2b": lambda: hashlib.blake2b(digest_size=16),
}


@dataclass(frozen=True)
class FileRecord:
    """Size and checksum of a file, as the manifest keeps them."""

    bytes: int
    digest: str
    algorithm: str = CHECKSUM

    def to_json(self) -> dict[str, Any]:
        """`{"bytes": 10, "xxh3_128": "..."}`."""
        return {"bytes": self.bytes, self.algorithm: self.digest}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> FileRecord:
        """The inverse. Raises ValueError for a checksum of an unknown kind."""
        for algorithm in _HASHES:
            if content.keys() == {"bytes", algorithm} and type(content["bytes"]) is int:
                return cls(content["bytes"], str(content[algorithm]), algorithm)
        raise ValueError(f"no size and known checksum ({', '.join(_HASHES)}): {sorted(content)}")


def write_bytes(path: Path, chunks: Iterable[Any]) -> FileRecord:
    """Write a new file of buffers through to the disk, hashing each as it goes.

    Raises:
        OSError: the storage refused, or the file exists.
    """
    digest = _HASHES[CHECKSUM]()
    size = 0
    with open(path, "xb", buffering=0) as file:
        for chunk in chunks:
            digest.update(chunk)
            view = memoryview(chunk)
            size += len(view)
            while len(view):
                view = view[file.write(view) :]
        os.fsync(file.fileno())
    return FileRecord(size, digest.hexdigest())


def encode_json(content: Any) -> bytes:
    """JSON as it is stored. Floats survive exactly; NaN and infinities are kept."""
    return json.dumps(content, indent=1).encode()


def hash_file(path: Path, algorithm: str = CHECKSUM) -> FileRecord:
    """What `write_bytes` would have recorded for the file as it is now.

    Raises:
        OSError: it cannot be read.
    """
    digest = _HASHES[algorithm]()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    size = 0
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    return FileRecord(size, digest.hexdigest(), algorithm)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
