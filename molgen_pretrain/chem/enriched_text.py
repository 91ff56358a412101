"""Enriched SMILES as text, without a chemistry toolkit: SMILES plus coordinates to one string and back.

In an enriched SMILES every atom is a bracket token directly followed by its position in angstrom:
`C=O` becomes `[C]<1.2500,0.0300,-0.9400>=[O]<2.1000,0.8500,-1.2200>`. A bare atom is wrapped in brackets, a
bracket atom and every bond, ring and branch symbol stay as they are. A wrapped `C` and a bracket atom `[C]`
would look the same, so SMILES with such a bracket atom (a radical or a naked ion) cannot be written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import ROUND_DOWN, Decimal, InvalidOperation
from typing import NamedTuple, SupportsFloat

from molgen_pretrain.errors import UserError

_BARE_ATOM = r"Cl|Br|[BCNOPSFIbcnops*]"
_BRACKET_ATOM = r"\[[^\[\]<>\s]+\]"
# Between atoms: bonds (dative arrows included), branches, ring closures, fragment dots.
_SYMBOL = r"->|<-|[-=#$:/\\~.()%0-9]"
_NUMBER = r"-?[0-9]{1,6}(?:\.[0-9]{1,18})?"

_SMILES_TOKEN = re.compile(f"(?P<bare>{_BARE_ATOM})|(?P<bracket>{_BRACKET_ATOM})|(?P<symbol>{_SYMBOL})")
_ENRICHED_TOKEN = re.compile(
    f"(?P<atom>{_BRACKET_ATOM})(?:<(?P<x>{_NUMBER}),(?P<y>{_NUMBER}),(?P<z>{_NUMBER})>)?|(?P<symbol>{_SYMBOL})"
)
_WRAPPED_BARE_ATOM = re.compile(rf"\[({_BARE_ATOM})\]")

_QUANTUM = Decimal("0.0001")

Point = tuple[float, float, float]


class EnrichedSmilesError(UserError):
    """Text or a molecule that has no enriched SMILES; `position` is the offset in the text, where known."""

    def __init__(self, message: str, position: int | None = None) -> None:
        super().__init__(message)
        self.position = position


class AmbiguousAtomError(EnrichedSmilesError):
    """A bracket atom such as `[N]` that would read back as a bare `N` with its implicit hydrogens."""


class EnrichedText(NamedTuple):
    """The two halves of an enriched SMILES: plain SMILES, and a position (angstrom) per atom in its order."""

    smiles: str
    coordinates: list[Point]


def truncate_coordinate(value: SupportsFloat | str) -> str:
    """Cut a coordinate to 4 decimals towards zero, as text with exactly 4 decimals and never `-0.0000`.

    Works on the shortest decimal text of the number, not on its binary value, so that a coordinate that
    already has at most 4 decimals is kept. Raises EnrichedSmilesError where the value is not a finite number.
    """
    try:
        number = Decimal(str(value))
        text = f"{number.quantize(_QUANTUM, rounding=ROUND_DOWN):f}"
    except InvalidOperation as error:
        raise EnrichedSmilesError(f"coordinate {value!r}: must be a finite number") from error
    if not number.is_finite():
        raise EnrichedSmilesError(f"coordinate {value!r}: must be a finite number")
    return "0.0000" if text == "-0.0000" else text


def write_enriched(smiles: str, coordinates: Sequence[Sequence[SupportsFloat | str]]) -> str:
    """Put a position (x, y, z in angstrom) behind every atom of a SMILES.

    `coordinates` [atoms, 3] follows the order of the atoms in the text. Raises AmbiguousAtomError for a bracket
    atom that is a mere organic-subset symbol, EnrichedSmilesError for other text that cannot be written and
    for a number of positions that differs from the number of atoms.
    """
    pieces: list[str] = []
    atoms = 0
    position = 0
    while position < len(smiles):
        match = _SMILES_TOKEN.match(smiles, position)
        if match is None:
            raise _unexpected(smiles, position, "an atom, bond, branch or ring symbol")
        token = match.group()
        if match.lastgroup == "bracket" and _WRAPPED_BARE_ATOM.fullmatch(token):
            raise AmbiguousAtomError(
                f"atom {token} at position {position} of {smiles!r} would read back as a bare {token[1:-1]} with "
                "implicit hydrogens: radicals and naked ions of this kind have no enriched SMILES",
                position,
            )
        pieces.append(f"[{token}]" if match.lastgroup == "bare" else token)
        if match.lastgroup != "symbol":
            if atoms < len(coordinates):
                pieces.append(_bracketed_point(coordinates[atoms]))
            atoms += 1
        position = match.end()
    if atoms != len(coordinates):
        raise EnrichedSmilesError(f"{smiles!r} has {atoms} atoms, but {len(coordinates)} positions were given")
    return "".join(pieces)


def read_enriched(embedded_smiles: str) -> EnrichedText:
    """Split an enriched SMILES into plain SMILES (bare atoms unwrapped) and coordinates.

    Raises EnrichedSmilesError, with the offset in the text, where an atom has no coordinates or the text leaves
    the grammar. Whether the SMILES is a valid molecule is left to `chem.enriched.decode`.
    """
    pieces: list[str] = []
    coordinates: list[Point] = []
    position = 0
    while position < len(embedded_smiles):
        match = _ENRICHED_TOKEN.match(embedded_smiles, position)
        if match is None:
            raise _unexpected(embedded_smiles, position, "a bracket atom or a bond, branch or ring symbol")
        atom, x, y, z, symbol = match.groups()
        if atom is None:
            pieces.append(symbol)
        elif x is None:
            raise _unexpected(embedded_smiles, match.end(), f"<x,y,z> in decimal numbers after {atom}")
        else:
            wrapped = _WRAPPED_BARE_ATOM.fullmatch(atom)
            pieces.append(wrapped.group(1) if wrapped else atom)
            coordinates.append((float(x), float(y), float(z)))
        position = match.end()
    if not coordinates:
        raise EnrichedSmilesError("enriched SMILES without an atom", 0)
    return EnrichedText("".join(pieces), coordinates)


def _bracketed_point(point: Sequence[SupportsFloat | str]) -> str:
    if len(point) != 3:
        raise EnrichedSmilesError(f"position {point!r}: must be x, y, z")
    return f"<{','.join(truncate_coordinate(value) for value in point)}>"


def _unexpected(text: str, position: int, expected: str) -> EnrichedSmilesError:
    found = repr(text[position : position + 24]) if position < len(text) else "the end"
    return EnrichedSmilesError(f"malformed text at position {position}: expected {expected}, found {found}", position)
