from __future__ import annotations

import builtins
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from molgen_pretrain.chem import AmbiguousAtomError, EnrichedSmilesError
from molgen_pretrain.errors import UserError

pytest.importorskip("rdkit")

from rdkit import Chem
from rdkit.Chem import AllChem

from molgen_pretrain.chem.enriched import decode, encode

SHARED_CONFORMERS = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "conformers"

SMILES = [
    "CC(=O)Oc1ccccc1C(=O)O",
    "C[C@H](N)C(=O)O",
    r"C/C=C\C=C",
    "CN1CCC[C@H]1c1cccnc1",
    "O=[N+]([O-])c1ccc[nH]1",
    "[2H]C([2H])([2H])O",
    r"[H]/N=C(\C)CC",
    "ClCBr.OCF",
    "FC(F)(F)[Si](C)(C)C",
    "C1CC2CCC1CC2",
]


def embedded_molecule(smiles: str) -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(mol, randomSeed=7) == 0
    return mol


def with_positions(smiles: str, points: list[tuple[float, float, float]]) -> Chem.Mol:
    mol = Chem.MolFromSmiles(smiles)
    conformer = Chem.Conformer(len(points))
    for index, point in enumerate(points):
        conformer.SetAtomPosition(index, point)
    mol.AddConformer(conformer)
    return mol


def test_known_molecule_is_written_in_canonical_order() -> None:
    # RDKit's canonical SMILES of acetaldehyde starts at the methyl group.
    mol = with_positions("O=CC", [(3.42009, 0.85, -1.22), (2.55, 0.11, -0.44), (1.25, -0.00001, -0.94)])
    assert encode(mol) == (
        "CC=O",
        "[C]<1.2500,0.0000,-0.9400>[C]<2.5500,0.1100,-0.4400>=[O]<3.4200,0.8500,-1.2200>",
    )


@pytest.mark.parametrize("smiles", SMILES)
def test_round_trip_keeps_molecule_and_positions(smiles: str) -> None:
    mol = embedded_molecule(smiles)
    canonical, embedded = encode(mol)
    decoded = decode(embedded)
    assert Chem.MolToSmiles(decoded) == canonical
    assert Chem.MolToSmiles(Chem.MolFromSmiles(smiles)) == canonical
    assert encode(decoded) == (canonical, embedded)
    heavy = Chem.RemoveHs(mol)
    match = heavy.GetSubstructMatch(decoded, useChirality=True)
    assert len(match) == heavy.GetNumAtoms()
    # Symmetric molecules match in several ways, so positions are compared as sets of points.
    np.testing.assert_allclose(
        sorted(decoded.GetConformer().GetPositions().tolist()),
        sorted(heavy.GetConformer().GetPositions().tolist()),
        atol=1.0001e-4,
    )


def test_atoms_get_their_own_positions() -> None:
    mol = embedded_molecule("COc1ccc(Cl)cc1C#N")
    heavy = Chem.RemoveHs(mol)
    decoded = decode(encode(mol)[1])
    order = heavy.GetSubstructMatch(decoded)
    np.testing.assert_allclose(
        decoded.GetConformer().GetPositions(), heavy.GetConformer().GetPositions()[list(order)], atol=1.0001e-4
    )


def test_geometry_agrees_with_the_stereo_marks() -> None:
    canonical, embedded = encode(embedded_molecule(r"C/C=C\[C@H](F)[C@@H](O)Cl"))
    with_hydrogens = Chem.AddHs(decode(embedded), addCoords=True)
    Chem.AssignStereochemistryFrom3D(with_hydrogens)
    assert Chem.MolToSmiles(Chem.RemoveHs(with_hydrogens)) == canonical


def test_conformer_id_selects_the_conformer() -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles("CCCCO"))
    ids = list(AllChem.EmbedMultipleConfs(mol, 2, randomSeed=3))
    first, second = (encode(mol, conformer_id) for conformer_id in ids)
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert encode(mol) == first
    with pytest.raises(EnrichedSmilesError, match=r"conformer_id=9.*\[0, 1\]"):
        encode(mol, 9)


def test_encode_leaves_the_molecule_alone() -> None:
    mol = embedded_molecule("CCO")
    before = mol.ToBinary(Chem.PropertyPickleOptions.AllProps)
    encode(mol)
    assert mol.ToBinary(Chem.PropertyPickleOptions.AllProps) == before


def test_molecule_without_3d_conformer_is_refused() -> None:
    mol = Chem.MolFromSmiles("CCO")
    with pytest.raises(EnrichedSmilesError, match="conformers"):
        encode(mol)
    AllChem.Compute2DCoords(mol)
    with pytest.raises(EnrichedSmilesError, match="2D drawing"):
        encode(mol)


def on_a_line(smiles: str) -> Chem.Mol:
    atoms = Chem.MolFromSmiles(smiles).GetNumAtoms()
    return with_positions(smiles, [(float(index), 0.0, 0.0) for index in range(atoms)])


@pytest.mark.parametrize("smiles", ["C[N]C", "[O]", "C[C]C", "C[CH]C[N]C"])
def test_bare_atom_radicals_are_refused(smiles: str) -> None:
    with pytest.raises(AmbiguousAtomError):
        encode(on_a_line(smiles))


@pytest.mark.parametrize("smiles", ["C[CH]C", "[CH3]", "C[NH]", "[O-]", "C[N+](C)(C)C"])
def test_unmistakable_bracket_atoms_round_trip(smiles: str) -> None:
    assert Chem.MolToSmiles(decode(encode(on_a_line(smiles))[1])) == Chem.CanonSmiles(smiles)


def test_smiles_that_rdkit_refuses() -> None:
    with pytest.raises(EnrichedSmilesError, match="RDKit does not accept"):
        decode("[C]<0.0,0.0,0.0>1[C]<1.5,0.0,0.0>")


def test_missing_rdkit_has_one_clear_message(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_rdkit(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "rdkit":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "molgen_pretrain.chem.toolkit", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_rdkit)
    with pytest.raises(UserError, match=r"pip install 'molgen-pretrain\[chem\]'"):
        importlib.import_module("molgen_pretrain.chem.toolkit")


@pytest.mark.skipif(not SHARED_CONFORMERS.is_dir(), reason="shared conformers are not beside this checkout")
def test_real_lines_round_trip_byte_for_byte() -> None:
    for path in sorted(SHARED_CONFORMERS.glob("*/*.jsonl")):
        lines = path.read_text().splitlines()
        for line in lines[:: max(1, len(lines) // 150)]:
            record = json.loads(line)
            assert encode(decode(record["embedded_smiles"])) == (
                record["canonical_smiles"],
                record["embedded_smiles"],
            )
