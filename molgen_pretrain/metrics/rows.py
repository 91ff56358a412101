"""A metrics row and its form in metrics.jsonl.

A row is a flat dict: `kind` ("train" or "validation"), `step` (optimizer updates, from 1) and named values.
JSON has no NaN or infinity, and writing them as null would hide a diverging run, so they are written as the
strings "NaN", "Infinity" and "-Infinity" and come back as floats from `read_rows`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import orjson

logger = logging.getLogger(__name__)

Value: TypeAlias = float | int | str | bool | None
Row: TypeAlias = dict[str, Value]

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def plain_row(row: Mapping[str, Any]) -> Row:
    """The row with zero-dimensional tensors and NumPy scalars turned into Python numbers.

    Raises TypeError for a value that is no number, string, boolean or None.
    """
    return {key: _plain(key, value) for key, value in row.items()}


def _plain(key: str, value: Any) -> Value:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"metric {key!r} is a {type(value).__name__}; a row holds numbers, strings, booleans, None")


def encode_row(row: Row) -> bytes:
    """The row as one line of strict JSON, newline included."""
    return orjson.dumps({key: _writable(value) for key, value in row.items()}) + b"\n"


def _writable(value: Value) -> Value:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def decode_row(line: bytes) -> Row | None:
    """The row of one line; None if the line is not a whole JSON object (cut off, or not ours)."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(row, dict):
        return None
    return {key: _NON_FINITE.get(value, value) if isinstance(value, str) else value for key, value in row.items()}


def read_rows(path: Path) -> list[Row]:
    """All rows of a metrics.jsonl, in file order; unreadable lines are left out and named in the log.

    Safe to call while a run is writing the file. Raises FileNotFoundError if there is none.
    """
    rows: list[Row] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            row = decode_row(line)
            if row is not None:
                rows.append(row)
            elif line.strip():
                logger.warning("%s:%d is not a whole row and is left out", path, number)
    return rows


def labelled_values(row: Row) -> dict[str, Value]:
    """The row's values under the names dashboards use: `train/loss`, `validation/perplexity`, ..."""
    return {f"{row['kind']}/{key}": value for key, value in row.items() if key not in ("kind", "step")}
