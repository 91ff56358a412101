"""The line index of some files: from the cache, or by the one-time pass over them.

It lives in `<cache_dir>/data/<key>/`. The key covers all that decides it: the files' paths, sizes and times, the
tokenizer and its library's version, the unit format and `min_emb_len`. Token ids stand in it if a start asked for
them and they fit.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tokenizers

from molgen_pretrain.data.cache import build_once
from molgen_pretrain.data.chunk import UnitRules
from molgen_pretrain.data.decompress import plain_files
from molgen_pretrain.data.file_pass import FilePass
from molgen_pretrain.data.files import FileIdentity
from molgen_pretrain.data.index_pass import IndexPass, bad_line_error, write_tokens
from molgen_pretrain.data.line_index import LineIndex, is_complete
from molgen_pretrain.data.token_cache import TOKENS_FOLDER, NoRoomError, TokenWriter, is_token_cache, needed_bytes
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.data.units import UNIT_FORMAT_VERSION, BadLine
from molgen_pretrain.errors import UserError

logger = logging.getLogger(__name__)

TOKEN_CACHES = ("auto", "lengths", "tokens")

_CACHE_VERSION = 2


def open_line_index(
    files: Sequence[Path],
    tokenizer: UnitTokenizer,
    cache_dir: Path,
    *,
    min_emb_len: int,
    stop_at_bad_line: bool = False,
    token_cache: str = "lengths",
    budget_bytes: int | None = None,
    processes: int | None = None,
) -> LineIndex:
    """The line index of `files` (compressed ones are unpacked into the cache first).

    token_cache: "lengths" neither uses nor makes token ids, "tokens" always does, "auto" where they fit: into
    `budget_bytes` and into half of the disk's free space. An index that stands without them gets them later.
    processes: None for one per usable core.

    With `stop_at_bad_line` the pass ends at the first bad line with a UserError that names it. Raises UserError
    too where the cache cannot be written or a file changes during the pass.
    """
    if token_cache not in TOKEN_CACHES:
        raise UserError(f"data.cache={token_cache}: must be one of {', '.join(TOKEN_CACHES)}")
    if processes is not None and processes < 1:
        raise UserError(f"data.index_processes={processes}: must be at least 1, or null for every core")
    setting = f"paths.cache={cache_dir}"
    identities = plain_files(files, cache_dir, setting)
    folder = cache_dir / "data" / cache_key(identities, tokenizer, min_emb_len)
    builder = _Builder(identities, UnitRules(tokenizer, min_emb_len), processes, token_cache, budget_bytes)
    try:
        build_once(folder, lambda aside: builder.build_index(aside, stop_at_bad_line), is_complete, setting)
        index = LineIndex(folder)
        if stop_at_bad_line and index.meta.first_bad_lines:
            first = index.meta.first_bad_lines[0]
            raise bad_line_error(index.meta.files[first.file].source, first.line, BadLine(first.reason))
        if token_cache == "lengths":
            return index
        builder.add_tokens(index, setting)
    except NoRoomError as error:
        raise UserError(
            f"{setting}: no room for token ids: {error}; give a folder with more room, or set data.cache=lengths"
        ) from error
    return LineIndex(folder, use_tokens=True)


def cache_key(identities: Sequence[FileIdentity], tokenizer: UnitTokenizer, min_emb_len: int) -> str:
    parts = {
        "cache_version": _CACHE_VERSION,
        "unit_format": UNIT_FORMAT_VERSION,
        "tokenizer": tokenizer.fingerprint,
        "tokenizers": tokenizers.__version__,
        "min_emb_len": min_emb_len,
        "files": [asdict(identity) for identity in identities],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class _Builder:
    """The passes that may be due, with what they share."""

    identities: Sequence[FileIdentity]
    rules: UnitRules
    processes: int | None
    token_cache: str
    budget_bytes: int | None

    def build_index(self, aside: Path, stop_at_bad_line: bool) -> None:
        tokens = None if self.token_cache == "lengths" else self._token_writer(aside / TOKENS_FOLDER)
        IndexPass(
            aside,
            self.identities,
            tokens,
            tokens_required=self.token_cache == "tokens",
            stop_at_bad_line=stop_at_bad_line,
        ).run(self._file_pass(with_ids=tokens is not None))

    def add_tokens(self, index: LineIndex, setting: str) -> None:
        """Sees that the token ids stand. Raises NoRoomError where they must and do not fit."""
        lines, tokens = index.meta.lines, index.meta.tokens
        folder = index.folder / TOKENS_FOLDER

        def stands(path: Path) -> bool:
            return is_token_cache(path, lines, tokens)

        def build(aside: Path) -> None:
            needed, limit = needed_bytes(lines, tokens, self.rules.tokenizer.size), self._limit_bytes(aside)
            if limit is not None and needed > limit:
                raise NoRoomError(f"they take {needed / 1e6:,.1f} MB, more than the {limit / 1e6:,.1f} MB allowed")
            write_tokens(index, self._file_pass(with_ids=True), self._token_writer(aside))

        try:
            if self.token_cache == "tokens" or stands(folder) or os.access(index.folder, os.W_OK):
                build_once(folder, build, stands, setting)
            else:
                raise NoRoomError(f"{index.folder} is not writable")
        except NoRoomError as error:
            if self.token_cache == "tokens":
                raise
            logger.info("data.cache=auto: no token ids, units are tokenized on the fly: %s", error)

    def _file_pass(self, with_ids: bool) -> FilePass:
        return FilePass(self.identities, self.rules, with_ids=with_ids, processes=self.processes)

    def _token_writer(self, folder: Path) -> TokenWriter:
        folder.mkdir(exist_ok=True)
        return TokenWriter(folder, self.rules.tokenizer.size, self._limit_bytes(folder))

    def _limit_bytes(self, folder: Path) -> int | None:
        if self.token_cache == "tokens":
            return None
        half_of_free = shutil.disk_usage(folder).free // 2
        return half_of_free if self.budget_bytes is None else min(self.budget_bytes, half_of_free)
