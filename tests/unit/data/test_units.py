from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from molgen_pretrain.data.units import MAX_LINE_BYTES, BadLine, parse_unit

EMBEDDED = "[C]<1.2500,0.0300,-0.9400>"
GOOD = json.dumps({"canonical_smiles": "C", "embedded_smiles": EMBEDDED}).encode()
UNIT = f"[SMILES]C[/SMILES][CONFORMER]{EMBEDDED}[/CONFORMER]"


@pytest.mark.parametrize(
    "line",
    [
        GOOD,
        GOOD + b"\n",
        GOOD + b"\r\n",
        b"\xef\xbb\xbf" + GOOD,
        b'{"canonical_smiles":"N",' + GOOD[1:],  # of duplicate keys the last counts
        GOOD[:-1] + b', "extra": [1, {"deep": null}]}',
    ],
)
def test_good_lines_give_the_unit(line: bytes) -> None:
    assert parse_unit(line, min_emb_len=16) == UNIT


def test_text_survives_unchanged() -> None:
    line = '{"canonical_smiles":"C\u2028\\u0000é","embedded_smiles":"😀\\n"}'.encode()
    assert parse_unit(line, min_emb_len=0) == "[SMILES]C\u2028\0é[/SMILES][CONFORMER]😀\n[/CONFORMER]"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", BadLine.BLANK),
        (b" \t\r\n", BadLine.BLANK),
        (b" " * (MAX_LINE_BYTES + 1), BadLine.TOO_LONG),
        (GOOD[:-1], BadLine.INVALID_JSON),
        (GOOD + GOOD, BadLine.INVALID_JSON),
        (b"\0" * 20, BadLine.INVALID_JSON),
        (GOOD.replace(b"[C]", b"[\0]"), BadLine.INVALID_JSON),
        (b'{"canonical_smiles": NaN}', BadLine.INVALID_JSON),
        (b"[" * 5000 + b"]" * 5000, BadLine.INVALID_JSON),
        (b'{"canonical_smiles": "\xff"}', BadLine.INVALID_UTF8),
        (b'{"canonical_smiles": "\xc0\xaf"}', BadLine.INVALID_UTF8),
        (b'{"canonical_smiles": "\xed\xa0\x80"}', BadLine.INVALID_UTF8),
        (rb'{"canonical_smiles": "\ud800"}', BadLine.INVALID_UTF8),
        (rb'{"canonical_smiles": "\udc00x"}', BadLine.INVALID_UTF8),
        (b"[1, 2]", BadLine.NOT_AN_OBJECT),
        (b'"text"', BadLine.NOT_AN_OBJECT),
        (b"null", BadLine.NOT_AN_OBJECT),
        (b'{"canonical_smiles": "C"}', BadLine.MISSING_FIELD),
        (b'{"canonical_smiles": 1, "embedded_smiles": "[C]"}', BadLine.WRONG_TYPE),
        (b'{"canonical_smiles": "C", "embedded_smiles": null}', BadLine.WRONG_TYPE),
        (b'{"canonical_smiles": "C", "embedded_smiles": [["C"]]}', BadLine.WRONG_TYPE),
        (b'{"canonical_smiles": "", "embedded_smiles": "[C]<1.0000,2.0000,3.0000>"}', BadLine.EMPTY_SMILES),
        (b'{"canonical_smiles": "C", "embedded_smiles": "[C]"}', BadLine.SHORT_CONFORMER),
    ],
)
def test_bad_lines_have_a_reason(line: bytes, reason: BadLine) -> None:
    assert parse_unit(line, min_emb_len=16) is reason
    assert reason.rule


def test_a_line_may_be_megabytes_long_and_nest_what_is_not_used() -> None:
    embedded = "[C]<1.2500,0.0300,-0.9400>" * 100_000
    extra = "[" * 500 + "]" * 500
    line = f'{{"extra": {extra}, "canonical_smiles": "C", "embedded_smiles": "{embedded}"}}'
    assert parse_unit(line.encode(), min_emb_len=16) == f"[SMILES]C[/SMILES][CONFORMER]{embedded}[/CONFORMER]"


def test_min_emb_len_counts_characters() -> None:
    line = '{"canonical_smiles": "C", "embedded_smiles": "ééé"}'.encode()
    assert isinstance(parse_unit(line, min_emb_len=3), str)
    assert parse_unit(line, min_emb_len=4) is BadLine.SHORT_CONFORMER


@given(st.binary(max_size=200))
def test_no_bytes_raise(line: bytes) -> None:
    assert isinstance(parse_unit(line, min_emb_len=16), BadLine)


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_no_mutation_of_a_good_line_raises(changes: list[tuple[int, int]]) -> None:
    line = bytearray(GOOD)
    for place, value in changes:
        line[place] = value
    assert isinstance(parse_unit(bytes(line), min_emb_len=16), str | BadLine)
