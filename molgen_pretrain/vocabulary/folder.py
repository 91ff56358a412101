"""A tokenizer's Hugging Face folder: read, and written again around a changed tokenizer."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from molgen_pretrain.errors import UserError

_TOKENIZER_FILE = "tokenizer.json"
_CONFIG_FILE = "tokenizer_config.json"
_ADDED_FILE = "added_tokens.json"
_SPECIAL_FILE = "special_tokens_map.json"
# They name tokens by their text, never by id. vocab.json and merges.txt stay behind: tokenizer.json has both.
_COPIED_FILES = (_SPECIAL_FILE, "chat_template.jinja")
_ADDED_FIELDS = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")


def read_tokenizer(folder: str | os.PathLike[str], setting: str) -> Tokenizer:
    """The tokenizer of a folder, without truncation and padding. Raises UserError where there is none to be read."""
    file = Path(folder) / _TOKENIZER_FILE
    if not file.is_file():
        raise UserError(f"{setting}={folder}: no {_TOKENIZER_FILE} there; give a tokenizer's folder")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises a bare Exception for whatever it cannot read
        raise UserError(f"{setting}={folder}: {_TOKENIZER_FILE} cannot be read ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_roles(folder: str | os.PathLike[str]) -> dict[str, str]:
    """The tokens that have a role, e.g. {"pad_token": "<|endoftext|>"}. Raises UserError for damaged files."""
    roles = {}
    for name in (_SPECIAL_FILE, _CONFIG_FILE):  # where both name one, the latter decides
        for role, entry in _read_json(Path(folder) / name).items():
            text = entry.get("content") if isinstance(entry, dict) else entry
            if role.endswith("_token") and isinstance(text, str):
                roles[role] = text
    return roles


def write_tokenizer(tokenizer: Tokenizer, base: str | os.PathLike[str], folder: Path) -> None:
    """Writes a tokenizer that was made from the one in `base`, with the files beside it, into an existing folder.

    Where those files repeat ids of added tokens, they get the new ones. Raises UserError where they are damaged.
    """
    (folder / _TOKENIZER_FILE).write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    added = tokenizer.get_added_tokens_decoder()
    config = _read_json(Path(base) / _CONFIG_FILE)
    if config:
        config["added_tokens_decoder"] = {
            str(token): {field: getattr(entry, field) for field in _ADDED_FIELDS} for token, entry in added.items()
        }
        _write_json(config, folder / _CONFIG_FILE)
    if (Path(base) / _ADDED_FILE).exists():
        learned = tokenizer.get_vocab(with_added_tokens=False)
        ids = {entry.content: token for token, entry in added.items() if entry.content not in learned}
        _write_json(ids, folder / _ADDED_FILE)
    for name in _COPIED_FILES:
        if (Path(base) / name).exists():
            shutil.copyfile(Path(base) / name, folder / name)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which takes the name `target` when all went well and else vanishes.

    Raises UserError where `target` exists or cannot be made.
    """
    if target.exists():
        raise UserError(f"--out={target}: exists already; give a new name, or remove it")
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        aside.mkdir(parents=True)
        try:
            yield aside
            os.rename(aside, target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise UserError(f"--out={target}: cannot be written: {error}") from error


def _read_json(file: Path) -> dict[str, Any]:
    """The object in a file, empty where there is no file."""
    try:
        content = json.loads(file.read_bytes()) if file.exists() else {}
    except ValueError as error:
        raise UserError(f"{file}: is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: must hold a JSON object, not {type(content).__name__}")
    return content


def _write_json(content: Mapping[str, Any], file: Path) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
