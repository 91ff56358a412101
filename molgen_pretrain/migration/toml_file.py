"""The old TOML file as flat keys with their lines."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from molgen_pretrain.errors import UserError
from molgen_pretrain.migration.toml_lines import KeyPath, key_lines

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class OldFile:
    """Every value by its path, e.g. ("training", "steps"), and the line of every key and section."""

    path: Path
    values: Mapping[KeyPath, Any]
    lines: Mapping[KeyPath, int]


def read_toml(path: Path) -> OldFile:
    """Raises UserError, with the line, where the file cannot be read or is no TOML."""
    try:
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
        content = tomllib.loads(text)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8: {error.reason} at byte {error.start}") from error
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        where = f"{path}:{line.group(1)}" if line else f"{path}"
        raise UserError(f"{where}: is not valid TOML: {error}") from error
    return OldFile(path, dict(_leaves(content, ())), key_lines(text))


def _leaves(table: Mapping[str, Any], path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    """Values that are no tables; an empty table too, so that an unknown section is found."""
    for key, value in table.items():
        below = (*path, key)
        if isinstance(value, dict) and value:
            yield from _leaves(value, below)
        else:
            yield below, value
