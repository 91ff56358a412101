"""One JSON line and the text that a model is trained on: the unit.

A unit is `[SMILES]{canonical}[/SMILES][CONFORMER]{embedded}[/CONFORMER]`. A line that cannot become one has
a reason with a stable name. No bytes whatever make `parse_unit` raise.
"""

from __future__ import annotations

import re
from enum import Enum

import orjson

# Part of every cache key: raise it when the text of a unit or the rules for a bad line change.
UNIT_FORMAT_VERSION = 1

# A longer line is not a molecule; the limit keeps a file without newlines from being read into memory.
MAX_LINE_BYTES = 16 * 1024 * 1024

CANONICAL_FIELD = "canonical_smiles"
EMBEDDED_FIELD = "embedded_smiles"

_BOM = b"\xef\xbb\xbf"
_LONE_SURROGATE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)


class BadLine(Enum):
    """Why a line gives no unit: the value is its name in reports, `rule` says what it should be."""

    BLANK = "blank"
    TOO_LONG = "too_long"
    INVALID_UTF8 = "invalid_utf8"
    INVALID_JSON = "invalid_json"
    NOT_AN_OBJECT = "not_an_object"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    EMPTY_SMILES = "empty_smiles"
    SHORT_CONFORMER = "short_conformer"

    @property
    def rule(self) -> str:
        return _RULES[self]


_RULES = {
    BadLine.BLANK: "a line holds one JSON object",
    BadLine.TOO_LONG: f"a line holds at most {MAX_LINE_BYTES:,} bytes",
    BadLine.INVALID_UTF8: "a line is valid UTF-8 without lone surrogates",
    BadLine.INVALID_JSON: "a line holds one JSON object",
    BadLine.NOT_AN_OBJECT: "a line holds one JSON object",
    BadLine.MISSING_FIELD: f"a line has {CANONICAL_FIELD} and {EMBEDDED_FIELD}",
    BadLine.WRONG_TYPE: f"{CANONICAL_FIELD} and {EMBEDDED_FIELD} are strings",
    BadLine.EMPTY_SMILES: f"{CANONICAL_FIELD} is not empty",
    BadLine.SHORT_CONFORMER: f"{EMBEDDED_FIELD} has at least data.min_emb_len characters",
}


def format_unit(canonical: str, embedded: str) -> str:
    return f"[SMILES]{canonical}[/SMILES][CONFORMER]{embedded}[/CONFORMER]"


def parse_unit(line: bytes, min_emb_len: int) -> str | BadLine:
    """The unit text of one line (with or without its newline), or the reason why there is none.

    A byte-order mark and CRLF are accepted; of duplicate keys the last one counts, as in most parsers.
    """
    if len(line) > MAX_LINE_BYTES:
        return BadLine.TOO_LONG
    line = line.removeprefix(_BOM)
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return _why_undecodable(line)
    if not isinstance(record, dict):
        return BadLine.NOT_AN_OBJECT
    if CANONICAL_FIELD not in record or EMBEDDED_FIELD not in record:
        return BadLine.MISSING_FIELD
    canonical, embedded = record[CANONICAL_FIELD], record[EMBEDDED_FIELD]
    if not isinstance(canonical, str) or not isinstance(embedded, str):
        return BadLine.WRONG_TYPE
    if not canonical:
        return BadLine.EMPTY_SMILES
    if len(embedded) < min_emb_len:
        return BadLine.SHORT_CONFORMER
    return format_unit(canonical, embedded)


def _why_undecodable(line: bytes) -> BadLine:
    if not line.strip():
        return BadLine.BLANK
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return BadLine.INVALID_UTF8
    return BadLine.INVALID_UTF8 if _LONE_SURROGATE.search(line) else BadLine.INVALID_JSON
