"""What becomes of every key of the old file: carried, obsolete, or a problem. Nothing else can happen to one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from molgen_pretrain.migration.aliases import AliasError, Aliases
from molgen_pretrain.migration.keys import KEYS, OBSOLETE_SECTIONS, Key
from molgen_pretrain.migration.problems import Problem, choose_from
from molgen_pretrain.migration.toml_file import OldFile
from molgen_pretrain.migration.toml_lines import KeyPath


@dataclass(frozen=True)
class Fate:
    """A key that the old file has, with its line and value: the setting it became, or the reason why it became none."""

    key: str
    line: int
    value: Any
    new: str = ""  # `section.key=value`, or a choice `group=name`
    reason: str = ""

    @property
    def is_obsolete(self) -> bool:
        return not self.new


class Ledger:
    """Values are read with `value` and settled once, by `carry`, `choose`, `drop` or `fail`.

    `settings` and `choices` are the result; `assumed` are settings that stand for what the old stack took where the
    file says nothing; `origins` tells which old key a setting or group came from.
    """

    def __init__(self, old: OldFile, aliases: Aliases) -> None:
        self.old = old
        self.aliases = aliases
        self.settings: dict[str, Any] = {}
        self.choices: dict[str, str] = {}
        self.fates: dict[str, Fate] = {}
        self.assumed: list[str] = []
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.origins: dict[str, str] = {}
        self.broken: set[str] = set()  # keys with a problem
        self._values: dict[str, Any] = {}
        for path, value in old.values.items():
            self._take(path, value)

    def has(self, key: str) -> bool:
        """Whether the file gives the key, with a value that it may have."""
        return key in self._values

    def value(self, key: str) -> Any:
        """The file's value, else the old stack's default (None: it had none that matters)."""
        return self._values.get(key, KEYS[key].default)

    def carry(self, key: str, new: str, value: Any) -> None:
        """The key becomes the setting `new`; where the file leaves it out, the old default does (None: nothing)."""
        if value is None:
            return
        self.settings[new] = value
        if self.has(key):
            self.origins[new] = key
            self._settle(key, new=f"{new}={shown(value)}")
        elif new not in self.assumed:
            self.assumed.append(new)

    def choose(self, group: str, choice: str, *keys: str) -> None:
        """The keys, as far as the file gives them, decide on a choice of a config group."""
        self.choices[group] = choice
        for key in filter(self.has, keys):
            self.origins[group] = key
            self._settle(key, new=f"{group}={choice}")

    def drop(self, reason: str, *keys: str) -> None:
        """The keys, as far as the file gives them and nothing has become of them yet, have no counterpart."""
        for key in keys:
            if self.has(key) and key not in self.fates:
                self._settle(key, reason=reason)

    def fail(self, key: str, text: str) -> None:
        """A mistake in the value of a key that the file gives; of one that it leaves out, in the file as a whole."""
        given = self.old.values.get(tuple(key.split(".")))
        shown_key = key if given is None else f"{key}={shown(given)}"
        self.problems.append(Problem(self.old.path, self.line(key), f"{shown_key}: {text}"))
        self.broken.add(key)
        self._values.pop(key, None)

    def place(self, key: str, section: str | None = None) -> str | None:
        """A path, or the interpolation that an alias becomes; a bare word is looked up in `section`.

        None where there is none, or the alias leads nowhere, which is then a problem.
        """
        given = self._values.get(key, "").strip()
        if not given:
            return None
        is_bare = section is not None and ":" not in given and not given.startswith("/")
        reference = f"{section}:{given}" if is_bare else given
        try:
            return self.aliases.interpolation(reference)
        except AliasError as error:
            self.fail(key, str(error).removeprefix(f"{reference}: "))
            return None

    def line(self, key: str) -> int:
        return self.old.lines.get(tuple(key.split(".")), 0)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def unsettled(self) -> list[str]:
        """Keys that nothing has become of yet."""
        return [key for key in self._values if key not in self.fates]

    def _take(self, path: KeyPath, value: Any) -> None:
        """Keep a value of a known key and of its type, or say what is wrong."""
        name, section = ".".join(path), path[0]
        if section in OBSOLETE_SECTIONS and len(path) > 1:
            self.fates[name] = Fate(name, self.old.lines.get(path, 0), value, reason=OBSOLETE_SECTIONS[section])
            return
        key = KEYS.get(name) if len(path) == 2 else None
        if key is None:
            self._report_unknown(path, value)
        elif not key.kind.accepts(value):
            self.fail(name, f"must be {key.kind.value}")
        else:
            self._values[name] = value
            self._take_word(name, key, value)

    def _take_word(self, name: str, key: Key, value: Any) -> None:
        if not key.words:
            return
        if value.lower() in key.words:
            self._values[name] = key.words[value.lower()]
        else:
            self.fail(name, f"no such choice{choose_from(value.lower(), key.words)}")

    def _report_unknown(self, path: KeyPath, value: Any) -> None:
        sections = list(dict.fromkeys([*(name.partition(".")[0] for name in KEYS), *OBSOLETE_SECTIONS]))
        section, name = path[0], ".".join(path)
        keys = [key.partition(".")[2] for key in KEYS if key.startswith(f"{section}.")]
        if section not in sections:
            path, text = (section,), f"{section}: unknown section{choose_from(section, sections)}"
        elif len(path) > 1:
            text = f"{name}: unknown key{choose_from(path[1], keys)}"
        elif value != {}:
            text = f"{name}: must be a section, [{name}]"
        else:
            return  # a section of ours without keys
        self.problems.append(Problem(self.old.path, self.old.lines.get(path, 0), text))

    def _settle(self, key: str, *, new: str = "", reason: str = "") -> None:
        value = self.old.values[tuple(key.split("."))]
        before = self.fates.get(key)
        if before and before.new and new:
            new = f"{before.new}, {new}"
        self.fates[key] = Fate(key, self.line(key), value, new, reason)


def shown(value: Any) -> str:
    """A value as Hydra's command line would take it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(shown, value)) + "]"
    return str(value)
