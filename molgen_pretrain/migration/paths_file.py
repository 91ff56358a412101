"""The old paths.yaml as it stands: sections of places by name, and the line of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from molgen_pretrain.errors import UserError

Place = tuple[str, ...]


@dataclass(frozen=True)
class PathsFile:
    """`sections` by name: places, or groups of places, by name. `lines` of every one of them, from 1."""

    path: Path
    sections: Mapping[str, Mapping[str, Any]]
    lines: Mapping[Place, int]


def read_paths(path: Path) -> PathsFile:
    """Raises UserError where the file cannot be read or does not hold sections."""
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        content = _with_text_keys(yaml.safe_load(text) or {})
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise UserError(f"{path}:{line}: is not valid YAML: {error.problem}") from error
    if not isinstance(content, dict) or not all(
        section is None or isinstance(section, dict) for section in content.values()
    ):
        raise UserError(f"{path}: must hold maps of places: base_paths, data, tokenizers, ckpts, models")
    return PathsFile(path, {name: section or {} for name, section in content.items()}, dict(_lines(root, ())))


def _lines(node: yaml.Node | None, place: Place) -> Iterator[tuple[Place, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*place, str(key.value))
            yield below, key.start_mark.line + 1
            yield from _lines(value, below)


def _with_text_keys(value: Any) -> Any:
    """YAML reads the name 500 as a number; here names are words."""
    return {str(key): _with_text_keys(inner) for key, inner in value.items()} if isinstance(value, dict) else value
