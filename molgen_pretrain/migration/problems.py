"""Mistakes in the old files, collected: all are told at once, each with file and line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from molgen_pretrain.errors import UserError


@dataclass(frozen=True, order=True)
class Problem:
    file: Path
    line: int  # counted from 1; 0: of the file as a whole
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}" if self.line else f"{self.file}: {self.text}"


def raise_all(problems: Iterable[Problem]) -> None:
    """Raise UserError with a line per problem, in the order of the files' lines; nothing where there are none."""
    found = sorted(set(problems))
    if found:
        raise UserError("\n".join(map(str, found)))


def choose_from(name: str, legal: Iterable[str]) -> str:
    """`, did you mean X?; legal: ...`: the end of a message about a name that is none of `legal`."""
    names = list(legal)
    close = difflib.get_close_matches(name, names, n=1)
    meant = f", did you mean {close[0]}?" if close else ""
    return f"{meant}; legal: {', '.join(names) or 'none'}"
