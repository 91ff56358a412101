"""On which line of a TOML text each key stands, which Python's parser does not tell.

A scanner, not a second parser: the text has already been read by the real one, so only what separates keys from
values matters here. All spellings of a key are known: tables, dotted and quoted keys, inline tables.
"""

from __future__ import annotations

import ast
import re

KeyPath = tuple[str, ...]

_BLANK = re.compile(r"[ \t]*")
_GAP = re.compile(r"(?:[ \t\r\n,]|#[^\n]*)*")  # between statements, and between the elements of arrays and tables
_SECOND_BRACKET = re.compile(r"\]?")  # of an array of tables
_KEY_PART = re.compile(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'|[A-Za-z0-9_-]+')
_SCALAR = re.compile(
    r'"""(?:[^\\]|\\.)*?"""(?:"{0,2})'  # up to two quotes may stand before the closing three
    r"|'''.*?'''(?:'{0,2})"
    r'|"(?:[^"\\]|\\.)*"'
    r"|'[^']*'"
    r"|\d{4}-\d\d-\d\d[Tt ]\d\d:[^\s,\]}#]+"  # a date and a time may be parted by a blank
    r"|[^\s,\]}#]+",
    re.DOTALL,
)


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line (from 1) on which each key, table and inline table of a valid TOML text first stands."""
    scanner = _Scanner(text)
    scanner.scan()
    return scanner.lines


class _Scanner:
    def __init__(self, text: str) -> None:
        self.lines: dict[KeyPath, int] = {}
        self._text = text
        self._at = 0

    def scan(self) -> None:
        table: KeyPath = ()
        self._skip(_GAP)
        while self._at < len(self._text):
            if self._next() == "[":
                self._at += 2 if self._text.startswith("[[", self._at) else 1
                table = self._key(())
                self._at = self._text.index("]", self._at) + 1
                self._skip(_SECOND_BRACKET)
            else:
                self._pair(table)
            self._skip(_GAP)

    def _pair(self, table: KeyPath) -> None:
        path = self._key(table)
        self._at = self._text.index("=", self._at) + 1
        self._skip(_BLANK)
        self._value(path)

    def _key(self, table: KeyPath) -> KeyPath:
        """A bare, quoted or dotted key; its line is kept for each of its parts."""
        path = table
        while True:
            self._skip(_BLANK)
            found = _KEY_PART.match(self._text, self._at)
            assert found, "the parser has accepted this text"
            path = (*path, _unquoted(found.group()))
            self.lines.setdefault(path, self._text.count("\n", 0, found.start()) + 1)
            self._at = found.end()
            self._skip(_BLANK)
            if self._next() != ".":
                return path
            self._at += 1

    def _value(self, path: KeyPath) -> None:
        opening = self._next()
        if opening not in ("[", "{"):
            self._skip(_SCALAR)
            return
        self._at += 1
        self._skip(_GAP)
        while self._next() not in ("]", "}"):
            if opening == "{":
                self._pair(path)
            else:
                self._value(path)
            self._skip(_GAP)
        self._at += 1

    def _next(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self._text, self._at)
        assert found, "the parser has accepted this text"
        self._at = found.end()


def _unquoted(part: str) -> str:
    if part[0] == '"':
        return str(ast.literal_eval(part))  # TOML's escapes are a part of Python's
    return part.strip("'")
