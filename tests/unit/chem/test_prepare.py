from __future__ import annotations

import itertools
import json

import pytest

pytest.importorskip("rdkit")

from rdkit import Chem

from molgen_pretrain.chem.enriched import decode
from molgen_pretrain.chem.prepare import ConformerError, dataset_lines, embed_conformers, molecule_key
from molgen_pretrain.chem.recombine import brics_fragments, is_drug_like, recombine
from molgen_pretrain.errors import UserError

SEEDS = ["CCOC(=O)c1ccc(N)cc1", "CN(C)CCOC(c1ccccc1)c1ccccc1", "O=C(Nc1ccccc1)C1CCOCC1", "C[C@H](N)C(=O)NC1CC1"]


def test_conformers_are_distinct_reproducible_and_of_one_isomer() -> None:
    smiles = "CC(O)C(Cl)CCOC"
    lines = dataset_lines(embed_conformers(smiles, 4, seed=1))
    assert lines == dataset_lines(embed_conformers(smiles, 4, seed=1))
    records = [json.loads(line) for line in lines]
    assert 2 <= len(records) <= 4
    assert all(list(record) == ["canonical_smiles", "embedded_smiles"] for record in records)
    assert len({record["embedded_smiles"] for record in records}) == len(records)
    (canonical,) = {record["canonical_smiles"] for record in records}
    assert canonical.count("@") >= 2, "open stereocentres are decided by the embedding"
    assert molecule_key(canonical) == molecule_key(smiles)


def test_given_stereo_is_kept() -> None:
    for smiles in ("C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O", r"C/C=C/C#N", r"C/C=C\C#N"):
        (line, *_) = dataset_lines(embed_conformers(smiles, 1, seed=5))
        assert json.loads(line)["canonical_smiles"] == Chem.CanonSmiles(smiles)


def test_a_rigid_molecule_has_one_minimum() -> None:
    assert embed_conformers("c1ccccc1", 3, seed=2).GetNumConformers() == 1


def test_bond_lengths_are_in_angstrom() -> None:
    (line, *_) = dataset_lines(embed_conformers("CC", 1, seed=0))
    distances = Chem.Get3DDistanceMatrix(decode(json.loads(line)["embedded_smiles"]))
    assert distances[0, 1] == pytest.approx(1.52, abs=0.03)


@pytest.mark.parametrize("smiles", ["not a molecule", "[Fe]", "C1#CC1(C2)C3C2=C3"])
def test_molecules_without_conformers_are_refused(smiles: str) -> None:
    with pytest.raises(ConformerError):
        embed_conformers(smiles, 1, seed=0)


def test_molecule_key_ignores_stereo_and_spelling() -> None:
    assert molecule_key("C[C@H](N)C(=O)O") == molecule_key("OC(=O)[C@H](N)C") == molecule_key("NC(C)C(O)=O")
    with pytest.raises(UserError, match="does not accept"):
        molecule_key("C1")


def test_recombined_molecules_are_complete_and_reproducible() -> None:
    fragments = brics_fragments(SEEDS)
    assert fragments == sorted(fragments)
    assert all("*" in fragment and "@" not in fragment for fragment in fragments)
    made = list(itertools.islice(recombine(fragments, seed=3), 40))
    assert made == list(itertools.islice(recombine(fragments, seed=3), 40))
    assert made != list(itertools.islice(recombine(fragments, seed=4), 40))
    assert len(set(made)) > 10
    for smiles in made:
        assert "*" not in smiles
        assert "." not in smiles
        assert Chem.CanonSmiles(smiles) == smiles


def test_drug_likeness_bounds() -> None:
    ibuprofen = "CC(C)Cc1ccc(C(C)C(=O)O)cc1"
    assert is_drug_like(ibuprofen, 10, 26, 0.5)
    assert not is_drug_like(ibuprofen, 16, 26, 0.5)
    assert not is_drug_like(ibuprofen, 10, 14, 0.5)
    assert not is_drug_like("CCCCCCCCCCCCCCCC", 10, 26, 0.2)
    assert not is_drug_like("CC(C)Cc1ccc(C(C)C(=O)[O-])cc1", 10, 26, 0.5)
    assert not is_drug_like("CC(C)Cc1ccc([Si](C)(C)C)cc1", 10, 26, 0.2)
