"""Compressed files of lines (`.zst`, `.gz`), unpacked once into the cache: lines are read at random.

They live in `<cache_dir>/decompressed/<key>/`, keyed by the archive's path, size and time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from molgen_pretrain.data.cache import build_once, hold_lock, unwritable_as_user_error
from molgen_pretrain.data.file_pass import usable_cores
from molgen_pretrain.data.files import ARCHIVE_SUFFIXES, FileIdentity, plain_path
from molgen_pretrain.data.progress import Progress
from molgen_pretrain.data.reader import changed_file
from molgen_pretrain.errors import UserError

logger = logging.getLogger(__name__)

_META_FILE = "archive.json"
# Of compressed text: what comes of one block is in memory at a time, whatever the ratio.
_BLOCK_BYTES = 16 * 1024


def plain_files(files: Sequence[Path], cache_dir: Path, setting: str) -> list[FileIdentity]:
    """The identity of each file, of a compressed one that of its unpacked copy in the cache, made now if due.

    `setting` names the cache in messages. Raises UserError for an archive that is damaged or changes meanwhile,
    and where the cache cannot be written.
    """
    root = cache_dir / "decompressed"
    folders = {file: root / _cache_key(FileIdentity.of(file)) for file in files if file.suffix in ARCHIVE_SUFFIXES}
    if not all(map(_is_unpacked, folders.values())):
        # Held here rather than in the threads: a signal can end this process while it waits for another one.
        with unwritable_as_user_error(root, setting):
            root.mkdir(parents=True, exist_ok=True)
            with hold_lock(root / "lock"):
                _unpack_all({file: folder for file, folder in folders.items() if not _is_unpacked(folder)}, setting)
    return [
        FileIdentity.of(folders[file] / plain_path(file).name, file) if file in folders else FileIdentity.of(file)
        for file in files
    ]


def _cache_key(archive: FileIdentity) -> str:
    return hashlib.sha256(json.dumps(asdict(archive), sort_keys=True).encode()).hexdigest()[:24]


def _is_unpacked(folder: Path) -> bool:
    try:
        meta = json.loads((folder / _META_FILE).read_text(encoding="utf-8"))
        return (folder / meta["name"]).stat().st_size == meta["size"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _unpack_all(folders: Mapping[Path, Path], setting: str) -> None:
    if not folders:
        return
    total_bytes = sum(file.stat().st_size for file in folders)
    logger.info("decompressing %d files, %.1f MB, into the cache", len(folders), total_bytes / 1e6)
    progress = Progress("decompressing", total_bytes)
    stop = threading.Event()

    def unpack(file: Path, folder: Path) -> None:
        build_once(folder, lambda aside: _unpack(file, aside, progress, stop), _is_unpacked, setting)

    with ThreadPoolExecutor(min(usable_cores(), len(folders))) as threads:
        try:
            for done in [threads.submit(unpack, file, folder) for file, folder in folders.items()]:
                done.result()
        finally:
            stop.set()
            threads.shutdown(cancel_futures=True)
    progress.finish()


def _unpack(archive: Path, folder: Path, progress: Progress, stop: threading.Event) -> None:
    """Writes the content and a note of what it is into `folder`. Raises CancelledError once `stop` is set."""
    identity = FileIdentity.of(archive)
    plain = folder / plain_path(archive).name
    with plain.open("wb") as out:
        for content in _decompress(_read_blocks(archive, progress), archive):
            out.write(content)
            if stop.is_set():
                raise CancelledError
    if FileIdentity.of(archive) != identity:
        raise changed_file(str(archive), "its size or time is another than at the start of decompressing")
    # The time is part of what caches are keyed by: unpacked again, the copy is the same file to them.
    os.utime(plain, ns=(identity.mtime_ns, identity.mtime_ns))
    meta = {"archive": asdict(identity), "name": plain.name, "size": plain.stat().st_size}
    (folder / _META_FILE).write_text(json.dumps(meta), encoding="utf-8")


def _read_blocks(file: Path, progress: Progress) -> Iterator[bytes]:
    try:
        with file.open("rb") as opened:
            while block := opened.read(_BLOCK_BYTES):
                yield block
                progress.add(len(block))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error


def _decompress(blocks: Iterable[bytes], archive: Path) -> Iterator[bytes]:
    """The content, of several members or frames one after another too. UserError where it is not whole."""
    new_decoder, damage = _decoder(archive.suffix)
    decoder = None
    members = 0
    try:
        for block in blocks:
            if decoder is None:
                block = block.lstrip(b"\0")  # padding between members
            while block:
                decoder = decoder or new_decoder()
                yield decoder.decompress(block)
                if not decoder.eof:
                    break
                members += 1
                block = decoder.unused_data.lstrip(b"\0")
                decoder = None
    except damage as error:
        raise UserError(f"{archive}: this archive is damaged ({error}); make it again") from error
    if decoder is not None or not members:
        raise UserError(f"{archive}: this archive ends too early; make it again")


def _decoder(suffix: str) -> tuple[Callable[[], Any], type[Exception]]:
    """(makes an object that decodes one member, what it raises)."""
    if suffix == ".gz":
        return lambda: zlib.decompressobj(wbits=zlib.MAX_WBITS | 16), zlib.error
    import zstandard  # only who has such files waits for it

    # The window that `zstd --long=31` needs; the default refuses it.
    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj, zstandard.ZstdError
