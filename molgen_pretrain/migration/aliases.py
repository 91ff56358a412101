"""The places of the old paths.yaml, which the TOML refers to as `section:key` or `section:key/rest`.

Here each place becomes a setting below `paths.aliases`, and each reference an interpolation of it. References within
paths.yaml stay references.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from molgen_pretrain.errors import UserError
from molgen_pretrain.migration.paths_file import PathsFile, Place
from molgen_pretrain.migration.problems import Problem, choose_from

_HOME = "paths.aliases"
_REFERENCE = re.compile(r"(\w+):(?!//)(.+)")  # what has // is an address
_INTERPOLATION = re.compile(r"\$\{([^{}]*)\}")
# Relative places of the section data were looked for below one of these roots, whichever are given.
_DATA_ROOTS = ("geom_data_root", "data_root")
_GEOM_NAMES = re.compile(r"(\w+_)?conformers_(train|valid|test)|rdkit_folder|test_mols|drugs_summary")


class AliasError(UserError):
    """A reference that leads nowhere; the message says what there is instead."""


class Aliases:
    """The places of one paths.yaml.

    `tree` is what `paths.aliases` becomes, `problems` what is wrong in the file, `notes` what the user should look
    at. Without a file there are no places, and every reference is an error.
    """

    def __init__(self, file: PathsFile | None) -> None:
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self._file = file
        self._sections: Mapping[str, Any] = {} if file is None else file.sections
        self._roots = [root for root in _DATA_ROOTS if root in self.names("base_paths")]
        self.tree: dict[str, Any] = self._converted(self._sections, ())
        self._report_cycles()

    def interpolation(self, reference: str) -> str:
        """What stands for `section:key[/rest]`; other text is a path, or a name on the Hugging Face hub, as it is.

        Raises AliasError where the reference leads nowhere.
        """
        found = _REFERENCE.fullmatch(reference.strip())
        if not found:
            return reference.strip().replace("${", "\\${")
        if self._file is None:
            raise AliasError(f"{reference}: is an alias; give the file that holds it as --paths")
        section, key = found.group(1), found.group(2).strip()
        if section not in self._sections:
            raise AliasError(
                f"{reference}: no section {section} in {self._file.path}{choose_from(section, self._sections)}"
            )
        return self._place(reference, section, key.split("/"))

    def names(self, section: str) -> list[str]:
        """The names in a section; none where it does not exist."""
        return list(self._sections.get(section, ()))

    def _place(self, reference: str, section: str, parts: list[str]) -> str:
        node, taken, rest = self._sections[section], [section], list(parts)
        while isinstance(node, dict) and rest and rest[0] in node:
            taken.append(rest.pop(0))
            node = node[taken[-1]]
        if isinstance(node, dict) and "root" in node:
            return self._model(node, taken, rest)
        if isinstance(node, dict) and rest:
            raise AliasError(f"{reference}: no {rest[0]} in {'.'.join(taken)}{choose_from(rest[0], node)}")
        if not isinstance(node, str | list):
            raise AliasError(f"{reference}: is no place{choose_from('', node) if isinstance(node, dict) else ''}")
        if isinstance(node, str) and _is_relative(node) and not (section == "data" and self._roots):
            self._note(f"{'.'.join(taken)} is relative, so it depends on the folder that a run starts in: {node}")
        return "/".join([_interpolation(taken), *rest])

    def _model(self, model: Mapping[str, Any], taken: list[str], rest: list[str]) -> str:
        """A trained model has a root and folders by step: the step that is named, else the final or the last one."""
        root = _interpolation([*taken, "root"])
        steps = model.get("steps") or {}
        if not steps or (rest and rest[0] not in steps):
            return "/".join([root, *rest])
        step = rest[0] if rest else "final" if "final" in steps else sorted(steps)[-1]
        return "/".join([root, _interpolation([*taken, "steps", step]), *rest[1:]])

    def _converted(self, value: Any, where: Place) -> Any:
        """A value of paths.yaml as a value below `paths.aliases`."""
        if isinstance(value, Mapping):
            names = [_name(key) for key in value]
            for key in value:
                if names.count(_name(key)) > 1:
                    self._report((*where, key), f"is called {_name(key)} here, as another one is; rename it")
            return {_name(key): self._converted(inner, (*where, key)) for key, inner in value.items()}
        if isinstance(value, list):
            value = self._first_of(value, where)
        if not isinstance(value, str):
            return value
        try:
            return self._text(value, where)
        except AliasError as error:
            self._report(where, str(error))
            return None

    def _first_of(self, places: list[Any], where: Place) -> Any:
        """Of a list the old stack took the first place that existed, else the first."""
        chosen = next((place for place in places if Path(str(place)).exists()), places[0] if places else None)
        self._note(f"{'.'.join(where)} lists places, of which the first that exists counted: it is {chosen} now")
        return chosen

    def _text(self, value: str, where: Place) -> str:
        if _INTERPOLATION.search(value):
            return _INTERPOLATION.sub(self._translated, value)
        if _REFERENCE.fullmatch(value):
            return self.interpolation(value)
        if where[0] == "data" and self._roots and _is_relative(value):
            is_geom = _GEOM_NAMES.fullmatch(where[-1]) or value.startswith(("geom_processed", "rdkit_folder"))
            root = self._roots[0] if is_geom else self._roots[-1]
            return f"{_interpolation(['base_paths', root])}/{value}"
        return value

    def _translated(self, found: re.Match[str]) -> str:
        """`${section.key}` of a YAML file that had interpolations before; `${oc.env:...}` stays."""
        inner = found.group(1)
        if inner.startswith("oc."):
            return found.group()
        section, _, key = inner.partition(".")
        if section not in self._sections:
            raise AliasError(f"{found.group()}: no section {section}{choose_from(section, self._sections)}")
        return self._place(found.group(), section, [key] if key in self.names(section) else key.split("."))

    def _report_cycles(self) -> None:
        uses = {place: set(re.findall(rf"\$\{{{_HOME}\.([^}}]+)\}}", text)) for place, text in _texts(self.tree, ())}
        for start in uses:
            ahead, seen = list(uses[start]), set()
            while ahead:
                place = ahead.pop()
                if place not in seen:
                    seen.add(place)
                    ahead += uses.get(place, ())
            if start in seen:
                self._report(tuple(start.split(".")), "leads back to itself")

    def _report(self, where: Place, text: str) -> None:
        assert self._file is not None
        self.problems.append(Problem(self._file.path, self._file.lines.get(where, 0), f"{'.'.join(where)}: {text}"))

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _is_relative(place: str) -> bool:
    return not place.startswith(("/", "~", "$")) and "://" not in place and not _REFERENCE.fullmatch(place)


def _texts(tree: Mapping[str, Any], where: Place) -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _texts(value, (*where, key))
        elif isinstance(value, str):
            yield ".".join((*where, key)), value


def _interpolation(place: list[str]) -> str:
    return "${" + ".".join((_HOME, *map(_name, place))) + "}"


def _name(key: str) -> str:
    """A key as an interpolation can spell it: `qwen3_0.6b` becomes `qwen3_0_6b`."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", key)
