from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from molgen_pretrain.chem import (
    AmbiguousAtomError,
    EnrichedSmilesError,
    read_enriched,
    truncate_coordinate,
    write_enriched,
)
from molgen_pretrain.errors import UserError

finite = st.floats(min_value=-1e5, max_value=1e5)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.23456, "1.2345"),
        (-1.23456, "-1.2345"),
        (0.99999, "0.9999"),
        (-0.00009, "0.0000"),
        (-0.0, "0.0000"),
        (2, "2.0000"),
        (1e-7, "0.0000"),
        # 4.35 * 10000 is 43499.99... in binary: cutting floats would lose a digit.
        (4.35, "4.3500"),
        ("-3.2401", "-3.2401"),
        (np.float32(1.2346), "1.2346"),
        (np.float64(-12.00019), "-12.0001"),
    ],
)
def test_truncation_of_known_values(value: float | str, text: str) -> None:
    assert truncate_coordinate(value) == text


@given(finite)
def test_truncation_goes_towards_zero_by_less_than_one_quantum(value: float) -> None:
    cut = Decimal(truncate_coordinate(value))
    exact = Decimal(repr(value))
    assert abs(cut) <= abs(exact) < abs(cut) + Decimal("0.0001")
    assert cut * exact >= 0


@given(finite)
def test_truncation_is_idempotent_as_text_and_as_float(value: float) -> None:
    text = truncate_coordinate(value)
    assert truncate_coordinate(text) == text
    assert truncate_coordinate(float(text)) == text
    assert text != "-0.0000"
    assert len(text.split(".")[1]) == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "one"])
def test_truncation_refuses_what_is_no_number(value: float | str) -> None:
    with pytest.raises(EnrichedSmilesError, match="finite number"):
        truncate_coordinate(value)


def test_atoms_are_wrapped_and_symbols_stay() -> None:
    smiles = r"Cl/C=C\[C@@H](Br)c1c[nH]c2[n+]([O-])cccc12"
    points = [(index + 0.25, -index - 0.5, 0.0) for index in range(15)]
    embedded = write_enriched(smiles, points)
    assert embedded.startswith(
        "[Cl]<0.2500,-0.5000,0.0000>/[C]<1.2500,-1.5000,0.0000>=[C]<2.2500,-2.5000,0.0000>"
        r"\[C@@H]<3.2500,-3.5000,0.0000>([Br]<4.2500,-4.5000,0.0000>)[c]<5.2500,-5.5000,0.0000>1"
    )
    assert embedded.endswith("[c]<14.2500,-14.5000,0.0000>12")
    assert read_enriched(embedded) == (smiles, points)


@given(
    st.lists(st.sampled_from(["C", "Cl", "n", "[nH]", "[C@@H]", "[13CH3]", "[O-]", "[se]", "*"]), min_size=1),
    st.lists(st.sampled_from(["", "=", "#", "(", ")", "/", "\\", "->", "<-", ".", "1", "%12", "-"])),
    st.data(),
)
def test_text_round_trip(atoms: list[str], symbols: list[str], data: st.DataObject) -> None:
    smiles = "".join(atom + symbol for atom, symbol in zip(atoms, symbols + [""] * len(atoms), strict=False))
    points = [tuple(data.draw(st.tuples(finite, finite, finite))) for _ in atoms]
    embedded = write_enriched(smiles, points)
    text, coordinates = read_enriched(embedded)
    assert text == smiles
    assert np.abs(np.array(coordinates) - np.array(points)).max() < 1.0001e-4
    assert write_enriched(text, coordinates) == embedded


@pytest.mark.parametrize("radical", ["[N]", "C[O]", "c1cc[c]cc1", "[Cl]", "C[C]"])
def test_bare_atom_radicals_are_refused(radical: str) -> None:
    with pytest.raises(AmbiguousAtomError, match="implicit hydrogens") as raised:
        write_enriched(radical, [(0.0, 0.0, 0.0)] * 8)
    assert isinstance(raised.value, UserError)
    assert raised.value.position is not None
    assert radical[raised.value.position] == "["


@pytest.mark.parametrize("count", [1, 3])
def test_number_of_positions_must_be_the_number_of_atoms(count: int) -> None:
    with pytest.raises(EnrichedSmilesError, match=f"has 2 atoms, but {count} positions"):
        write_enriched("CO", [(0.0, 0.0, 0.0)] * count)


def test_smiles_outside_the_grammar_are_refused() -> None:
    with pytest.raises(EnrichedSmilesError, match="position 1"):
        write_enriched("CX", [(0.0, 0.0, 0.0)] * 2)
    with pytest.raises(EnrichedSmilesError, match="must be x, y, z"):
        write_enriched("C", [(0.0, 0.0)])


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("", 0),
        ("()", 0),
        ("C<0.0,0.0,0.0>", 0),
        ("[C]", 3),
        ("[C]<0.0,0.0>", 3),
        ("[C]<0.0,0.0,0.0", 3),
        ("[C]<0.0,nan,0.0>", 3),
        ("[C]<0.0,1.5.2,0.0>", 3),
        ("[C]<0.0,- 1.5,0.0>", 3),
        ("[C]<0.0,0.0,0.0>[O<1.0,0.0,0.0>", 16),
        ("[C]<0.0,0.0,0.0>=O", 17),
        ("[C]<0.0,0.0,0.0> [O]<1.0,0.0,0.0>", 16),
        ("[C]<0.0,0.0,0.0>[O]", 19),
    ],
)
def test_malformed_text_names_the_position(text: str, position: int) -> None:
    with pytest.raises(EnrichedSmilesError) as raised:
        read_enriched(text)
    assert raised.value.position == position
    if text not in ("", "()"):
        assert f"position {position}" in str(raised.value)
